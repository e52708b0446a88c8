# shellcheck shell=bash
# Sourced by the scripts in the parent directory. Finds Python and Java, and keeps the virtual environment .venv up to date.
# Uses only Bash 3.2 and POSIX tools, which is what macOS provides.

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd -P)
# A script sets this to `oldest` to use a separate environment with the versions in oldest.txt, next to this file.
use_versions=${use_versions-}
venv=$root/.venv${use_versions:+-$use_versions}
stamp=$venv/stamp # written last: without it, making .venv was interrupted
lock=$venv.lock   # also distinguishes an interrupted .venv from one that these scripts did not make

min_java=17        # required by Spark 4
oldest_python=10   # 3.10, see requires-python in pyproject.toml
newest_python=13   # 3.13 is the newest that TensorFlow supports; PYTHON=... overrides the limit
[ "$use_versions" != oldest ] || newest_python=12 # the newest that TensorFlow 2.16 supports

# The user's Spark and Python settings refer to other installations: PYTHONPATH or SPARK_HOME would shadow the pyspark in
# .venv, and SPARK_REMOTE or SPARK_CONF_DIR would select the user's cluster.
unset PYTHONPATH PYTHONHOME SPARK_HOME SPARK_CONF_DIR SPARK_REMOTE SPARK_MASTER PYSPARK_SUBMIT_ARGS
# The user's pip settings could install packages outside .venv.
unset PIP_USER PIP_TARGET PIP_PREFIX
# Without these, Spark would run its Python workers with the python3 in PATH instead of the one in .venv.
export PYSPARK_PYTHON=$venv/bin/python PYSPARK_DRIVER_PYTHON=$venv/bin/python

say() { printf '%s\n' "$*" >&2; }

# --- system packages -------------------------------------------------------------------------------------------

have() { command -v "$1" >/dev/null 2>&1; }

is_root() { [ "$(id -u)" = 0 ]; }

# system_install REASON APT_PACKAGE DNF_PACKAGE BREW_PACKAGE: install it as root; otherwise print how, and return 1.
system_install() {
  if is_root && have apt-get; then
    say "Installing $2 with apt-get"
    logged_install env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$2"
  elif is_root && have dnf; then
    say "Installing $3 with dnf"
    logged_install dnf install -y "$3"
  else
    say "$1 Install it with one of these commands, then try again:"
    say "  Debian, Ubuntu:  sudo apt-get update && sudo apt-get install -y $2"
    say "  Fedora:          sudo dnf install -y $3"
    say "  macOS:           brew install $4"
    return 1
  fi
}

logged_install() {
  local output
  output=$("$@" 2>&1 </dev/null) || {
    printf '%s\n' "$output" | tail -n 15 >&2
    say "Failed: $*"
    return 1
  }
}

# first_apt_package NAME...: the first package that apt knows, or the last name. Packages differ between releases.
first_apt_package() {
  local name
  for name in "$@"; do
    # `apt-cache show` also succeeds for names that are only mentioned by other packages.
    case $(LC_ALL=C apt-cache policy "$name" 2>/dev/null) in
      *"Candidate: (none)"*) ;;
      *Candidate:*) break ;;
    esac
  done
  printf '%s\n' "$name"
}

apt_updated=
# The package lists of a container image are empty or outdated until the first update.
update_apt() {
  if [ -z "$apt_updated" ] && is_root && have apt-get; then
    logged_install apt-get update || return 1
    apt_updated=yes
  fi
}

# --- Java ------------------------------------------------------------------------------------------------------------

# java_version JAVA: print its major version ("1.8.0_402" is 8), or nothing if it does not run.
# With JAVA_TOOL_OPTIONS set, java prints more lines before the version.
java_version() {
  "$1" -version 2>&1 </dev/null | sed -n 's/.* version "\(1\.\)\{0,1\}\([0-9][0-9]*\).*/\2/p' | head -n 1
}

java_is_new_enough() {
  local version
  version=$(java_version "$1") || return 1
  [ -n "$version" ] && [ "$version" -ge "$min_java" ]
}

# Spark prefers JAVA_HOME to PATH, so an outdated JAVA_HOME is replaced while the script runs.
find_java() {
  if [ -n "${JAVA_HOME:-}" ]; then
    java_is_new_enough "$JAVA_HOME/bin/java" && return 0
  fi
  if java_is_new_enough java; then
    unset JAVA_HOME
    return 0
  fi
  local java
  for java in /usr/lib/jvm/*/bin/java /opt/homebrew/opt/openjdk*/bin/java /usr/local/opt/openjdk*/bin/java \
    /Library/Java/JavaVirtualMachines/*/Contents/Home/bin/java; do
    if [ -x "$java" ] && java_is_new_enough "$java"; then
      JAVA_HOME=$(dirname -- "$(dirname -- "$java")")
      export JAVA_HOME
      return 0
    fi
  done
  return 1
}

use_java() {
  find_java && return 0
  local found="no Java was found" version
  version=$(java_version java) || version=
  [ -z "$version" ] || found="the java in PATH is version $version"
  [ -z "${JAVA_HOME:-}" ] || found="$found, and JAVA_HOME is $JAVA_HOME"
  update_apt || return 1
  local package
  package=$(first_apt_package openjdk-17-jre-headless openjdk-21-jre-headless openjdk-25-jre-headless default-jre-headless)
  system_install "Spark needs Java $min_java or newer; $found." "$package" java-21-openjdk-headless openjdk@21 || return 1
  find_java || { say "The package was installed, but no Java $min_java or newer can be found."; return 1; }
}

# --- network namespaces ----------------------------------------------------------------------------------------------

# Several hosts on one machine require Linux and root. Without these, their tests are skipped with the reason.
use_hosts() {
  if [ "$(uname -s)" != Linux ] || ! is_root || have ip; then
    return 0
  fi
  update_apt || return 1
  system_install "The command ip, which several hosts on one machine require, was not found." iproute2 iproute iproute2mac
}

# --- Python ----------------------------------------------------------------------------------------------------------

# python_path COMMAND [any]: print the Python's absolute path, or nothing if it does not run or is not a supported version.
# It has to be run, because a name in PATH can be a shim for a version that is not installed.
python_path() {
  "$1" -c '
import sys
oldest, newest = (3, int(sys.argv[1])), (3, int(sys.argv[2]))
if oldest <= sys.version_info[:2] <= newest:
    print(sys.executable)
' "$oldest_python" "$([ "${2:-}" = any ] && echo 999 || echo "$newest_python")" 2>/dev/null </dev/null
}

# Debian ships both modules in a separate package, python3.X-venv.
can_make_venvs() { "$1" -c 'import ensurepip, venv' >/dev/null 2>&1 </dev/null; }

# An active virtual environment comes first in PATH; .venv is made from the Python behind it, if there is one.
path_without_active_environment() {
  local path=:$PATH: active
  for active in "${VIRTUAL_ENV:-}" "${CONDA_PREFIX:-}"; do
    [ -z "$active" ] || path=${path//":$active/bin:"/:}
  done
  path=${path#:}
  printf '%s\n' "${path%:}"
}

# Set `python` to the first that can create virtual environments, else the first supported version, else nothing.
find_python() {
  local path name candidate
  python=
  for path in "$(path_without_active_environment)" "$PATH"; do
    for name in python3 python3.13 python3.12 python3.11 python3.10 /usr/bin/python3; do
      candidate=$(PATH=$path; python_path "$name") || continue
      [ -n "$candidate" ] || continue
      if can_make_venvs "$candidate"; then
        python=$candidate
        return 0
      fi
      [ -n "$python" ] || python=$candidate
    done
  done
  return 1
}

choose_python() {
  if [ -n "${PYTHON:-}" ]; then
    python=$(python_path "$PYTHON" any) || python=
    [ -n "$python" ] || { say "PYTHON=$PYTHON is not Python 3.$oldest_python or newer."; return 1; }
    can_make_venvs "$python" && return 0
  else
    find_python && return 0
  fi
  update_apt || return 1
  if [ -n "$python" ]; then
    local version
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    system_install "$python lacks the modules venv and ensurepip." "python$version-venv" "python$version" "python@$version" || return 1
    can_make_venvs "$python" && return 0
  else
    system_install "Python 3.$oldest_python to 3.$newest_python is required, and none was found in PATH (set PYTHON=... to use another)." \
      python3-venv python3.12 python@3.12 || return 1
    find_python && return 0
  fi
  say "The package was installed, but no Python 3.$oldest_python to 3.$newest_python with venv and ensurepip can be found."
  return 1
}

# --- .venv -----------------------------------------------------------------------------------------------------------

# The stamp has four lines: a checksum of the inputs of .venv, its path, its Python and its extra.
read_stamp() {
  stamp_key='' stamp_venv='' stamp_python='' stamp_extra=''
  [ -f "$stamp" ] || return 1
  { IFS= read -r stamp_key && IFS= read -r stamp_venv && IFS= read -r stamp_python && IFS= read -r stamp_extra; } <"$stamp"
}

current_key() { cat "$root/pyproject.toml" "$root"/scripts/lib/{setup.sh,oldest.txt,spark_classes.py,python_archives.py} | cksum; }

# Whether .venv is complete, has not been moved, and still has its Python, which is the requested one.
venv_is_sound() {
  read_stamp || return 1
  [ "$stamp_venv" = "$venv" ] && [ -x "$venv/bin/python" ] || return 1
  [ -z "${PYTHON:-}" ] || [ "$stamp_python" = "$(python_path "$PYTHON" any)" ]
}

venv_is_current() {
  venv_is_sound && [ "$stamp_key" = "$(current_key)" ] && { [ "$stamp_extra" = "$1" ] || [ "$stamp_extra" = dev ]; }
}

# use_venv demo|dev: install the project into .venv in editable mode with that extra. dev includes demo.
use_venv() {
  venv_is_current "$1" && return 0
  if [ -e "$venv" ] && [ ! -e "$lock" ] && [ ! -e "$stamp" ]; then
    say "$venv was not created by this project's scripts. Move or delete it, then try again."
    return 1
  fi
  # Prevents two scripts from installing at once. The lock is released when its process ends, however it ends.
  (if have flock; then flock 9; fi && make_venv "$1") 9>"$lock"
}

make_venv() {
  local extra=$1 key
  venv_is_current "$extra" && return 0
  key=$(current_key)
  if venv_is_sound; then
    python=$stamp_python
    [ "$stamp_extra" != dev ] || extra=dev
    rm -f "$stamp"
    say "Updating ${venv##*/}"
  else
    choose_python || return 1
    rm -f "$stamp"
    logged_install "$python" -m venv --clear "$venv" || return 1
    say "Installing TensorFlow and PySpark into ${venv##*/} (a minute or two, once)"
  fi
  pip_install --no-compile -e ".[$extra]" ${use_versions:+-c "scripts/lib/$use_versions.txt"} || return 1
  if [ "$extra" = dev ]; then
    # tf_keras depends on `tensorflow`, whose files would overwrite those of tensorflow-cpu. Without its dependencies, it
    # works with either, as long as its version matches TensorFlow's.
    pip_install --no-compile --no-deps "tf_keras==$(tensorflow_series).*" || return 1
    # Optional: it saves half a second of processor time for each Python worker that the tests start.
    "$venv/bin/python" "$root/scripts/lib/python_archives.py" >>"$venv/install.log" 2>&1 </dev/null ||
      say "Adding bytecode to PySpark's archives failed, see $venv/install.log. The tests run without it."
  fi
  # On all cores, as pip does not. Some packages have files that are no Python, such as templates; pip ignores them, too.
  "$venv/bin/python" -m compileall -q -j 0 "$venv/lib" >>"$venv/install.log" 2>&1 </dev/null || :
  printf '%s\n' "$key" "$venv" "$python" "$extra" >"$stamp"
}

# Tests start dozens of JVMs, which take half of the processor time if Spark's classes are in an archive. It is optional,
# and is tried once for each .venv.
archive_spark_classes() {
  local archive=$venv/spark-classes.jsa log=$venv/archive.log
  [ "$log" -ot "$stamp" ] || return 0 # older than .venv, or missing
  say "Archiving Spark's classes for the tests (a minute, once)"
  # Under names of this process until they are complete: another one may be archiving, too, and this one may be interrupted.
  SPARK_LOCAL_IP=127.0.0.1 \
    SPARK_SUBMIT_OPTS="-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -XX:ArchiveClassesAtExit=$archive.$$" \
    "$venv/bin/spark-submit" "$root/scripts/lib/spark_classes.py" >"$log.$$" 2>&1 </dev/null ||
    say "This failed, see $log. The tests run without it."
  rm -f "$archive"
  [ ! -f "$archive.$$" ] || mv -f "$archive.$$" "$archive"
  mv -f "$log.$$" "$log"
}

# Print TensorFlow's minor version, such as 2.21.
tensorflow_series() {
  "$venv/bin/python" -c '
from importlib.metadata import distributions
names = ("tensorflow", "tensorflow-cpu")
version = next(d.version for d in distributions() if d.metadata["Name"].lower().replace("_", "-") in names)
print(".".join(version.split(".")[:2]))
'
}

pip_install() {
  # Run in the project's directory, because brackets in a path would be parsed as an extra.
  (cd -- "$root" && "$venv/bin/python" -m pip install --disable-pip-version-check --no-input "$@") \
    >"$venv/install.log" 2>&1 </dev/null || {
    tail -n 25 "$venv/install.log" >&2
    say "pip install $* failed; see $venv/install.log for the full output. The next call starts from scratch."
    return 1
  }
}
