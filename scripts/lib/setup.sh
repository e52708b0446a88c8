# shellcheck shell=bash
# Sourced by the scripts in the folder above: finds Python and Java, and keeps the virtual environment .venv up to date.
# Bash 3.2 and POSIX tools, because that is what macOS has.

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd -P)
# `oldest`, set by the script, is for an environment of its own with the versions in oldest.txt beside this file.
use_versions=${use_versions-}
venv=$root/.venv${use_versions:+-$use_versions}
stamp=$venv/stamp # written last, so a .venv without it was interrupted
lock=$venv.lock   # also tells a .venv that was interrupted from one that somebody else made

min_java=17        # of Spark 4
oldest_python=10   # 3.10, see requires-python in pyproject.toml
newest_python=13   # 3.13 is the newest that TensorFlow has releases for; PYTHON=... goes past it
[ "$use_versions" != oldest ] || newest_python=12 # TensorFlow 2.16 has no releases for a newer one

# A user's Spark and Python settings point to another installation than the one in .venv: a PYTHONPATH or SPARK_HOME
# of theirs would put other versions of pyspark in front, and SPARK_REMOTE or SPARK_CONF_DIR would aim at their cluster.
unset PYTHONPATH PYTHONHOME SPARK_HOME SPARK_CONF_DIR SPARK_REMOTE SPARK_MASTER PYSPARK_SUBMIT_ARGS
# Their pip settings may send packages to a place outside .venv.
unset PIP_USER PIP_TARGET PIP_PREFIX
# Spark starts its Python workers by this name; a python3 found in PATH would not be the one in .venv.
export PYSPARK_PYTHON=$venv/bin/python PYSPARK_DRIVER_PYTHON=$venv/bin/python

say() { printf '%s\n' "$*" >&2; }

# --- the system's packages -------------------------------------------------------------------------------------------

have() { command -v "$1" >/dev/null 2>&1; }

is_root() { [ "$(id -u)" = 0 ]; }

# system_install WHAT APT_PACKAGE DNF_PACKAGE BREW_PACKAGE: as root installs it, else says how and returns 1.
system_install() {
  if is_root && have apt-get; then
    say "Installing $2 with apt-get"
    logged_install env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$2"
  elif is_root && have dnf; then
    say "Installing $3 with dnf"
    logged_install dnf install -y "$3"
  else
    say "$1 Install it with one of these, then run this again:"
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

# first_apt_package NAME...: the first of the names that apt knows, else the last; releases differ in what they have.
first_apt_package() {
  local name
  for name in "$@"; do
    # `apt-cache show` would also succeed for a name that other packages merely mention.
    case $(LC_ALL=C apt-cache policy "$name" 2>/dev/null) in
      *"Candidate: (none)"*) ;;
      *Candidate:*) break ;;
    esac
  done
  printf '%s\n' "$name"
}

apt_updated=
# An image's package lists are empty or old until the first update.
update_apt() {
  if [ -z "$apt_updated" ] && is_root && have apt-get; then
    logged_install apt-get update || return 1
    apt_updated=yes
  fi
}

# --- Java ------------------------------------------------------------------------------------------------------------

# java_version JAVA: its major version ("1.8.0_402" is 8), nothing where it does not run.
# JAVA_TOOL_OPTIONS makes java print further lines, before this one.
java_version() {
  "$1" -version 2>&1 </dev/null | sed -n 's/.* version "\(1\.\)\{0,1\}\([0-9][0-9]*\).*/\2/p' | head -n 1
}

java_is_new_enough() {
  local version
  version=$(java_version "$1") || return 1
  [ -n "$version" ] && [ "$version" -ge "$min_java" ]
}

# Spark takes JAVA_HOME before PATH, so an old Java there is replaced for the run of the script.
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
  local found="none was found" version
  version=$(java_version java) || version=
  [ -z "$version" ] || found="the java in PATH is version $version"
  [ -z "${JAVA_HOME:-}" ] || found="$found, and JAVA_HOME is $JAVA_HOME"
  update_apt || return 1
  local package
  package=$(first_apt_package openjdk-17-jre-headless openjdk-21-jre-headless openjdk-25-jre-headless default-jre-headless)
  system_install "Spark needs Java $min_java or newer; $found." "$package" java-21-openjdk-headless openjdk@21 || return 1
  find_java || { say "The package was installed, but still no Java $min_java or newer is found."; return 1; }
}

# --- network namespaces ----------------------------------------------------------------------------------------------

# For several hosts on one machine, which takes Linux and root; elsewhere their tests are skipped, and say why.
use_hosts() {
  if [ "$(uname -s)" != Linux ] || ! is_root || have ip; then
    return 0
  fi
  update_apt || return 1
  system_install "Several hosts on one machine need the command ip." iproute2 iproute iproute2mac
}

# --- Python ----------------------------------------------------------------------------------------------------------

# python_path COMMAND [any]: the absolute path of that Python, nothing where it does not run or is of another version.
# It is run and asked, because a name in PATH can be a shim for a version that is not installed.
python_path() {
  "$1" -c '
import sys
oldest, newest = (3, int(sys.argv[1])), (3, int(sys.argv[2]))
if oldest <= sys.version_info[:2] <= newest:
    print(sys.executable)
' "$oldest_python" "$([ "${2:-}" = any ] && echo 999 || echo "$newest_python")" 2>/dev/null </dev/null
}

# Debian has both in a package of their own, python3.X-venv.
can_make_venvs() { "$1" -c 'import ensurepip, venv' >/dev/null 2>&1 </dev/null; }

# An active virtual environment stands first in PATH; .venv is made from the Python below it where there is one.
path_without_active_environment() {
  local path=:$PATH: active
  for active in "${VIRTUAL_ENV:-}" "${CONDA_PREFIX:-}"; do
    [ -z "$active" ] || path=${path//":$active/bin:"/:}
  done
  path=${path#:}
  printf '%s\n' "${path%:}"
}

# Sets `python` to the first that can make virtual environments, else to the first that is new enough, else to nothing.
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
    [ -n "$python" ] || { say "PYTHON=$PYTHON is no Python 3.$oldest_python or newer."; return 1; }
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
    system_install "This needs Python 3.$oldest_python to 3.$newest_python (PYTHON=... names another); none was found in PATH." \
      python3-venv python3.12 python@3.12 || return 1
    find_python && return 0
  fi
  say "The package was installed, but still no Python 3.$oldest_python to 3.$newest_python with venv and ensurepip is found."
  return 1
}

# --- .venv -----------------------------------------------------------------------------------------------------------

# The stamp's lines: what .venv was made for, where it is, by which Python, with which extra.
read_stamp() {
  stamp_key='' stamp_venv='' stamp_python='' stamp_extra=''
  [ -f "$stamp" ] || return 1
  { IFS= read -r stamp_key && IFS= read -r stamp_venv && IFS= read -r stamp_python && IFS= read -r stamp_extra; } <"$stamp"
}

current_key() { cat "$root/pyproject.toml" "$root"/scripts/lib/{setup.sh,oldest.txt} | cksum; }

# A .venv that was finished once, was not moved since, and whose Python is still there and still the one asked for.
venv_is_sound() {
  read_stamp || return 1
  [ "$stamp_venv" = "$venv" ] && [ -x "$venv/bin/python" ] || return 1
  [ -z "${PYTHON:-}" ] || [ "$stamp_python" = "$(python_path "$PYTHON" any)" ]
}

venv_is_current() {
  venv_is_sound && [ "$stamp_key" = "$(current_key)" ] && { [ "$stamp_extra" = "$1" ] || [ "$stamp_extra" = dev ]; }
}

# use_venv demo|dev: the project, editable, with that extra in .venv; dev includes demo.
use_venv() {
  venv_is_current "$1" && return 0
  if [ -e "$venv" ] && [ ! -e "$lock" ] && [ ! -e "$stamp" ]; then
    say "$venv was not made by the project's scripts; move it away or delete it, then run this again."
    return 1
  fi
  # Two scripts started at once would install into each other; the lock goes with its process, however that ends.
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
    say "Bringing ${venv##*/} up to date"
  else
    choose_python || return 1
    rm -f "$stamp"
    logged_install "$python" -m venv --clear "$venv" || return 1
    say "Installing TensorFlow and PySpark into ${venv##*/} (a minute or two, once)"
  fi
  pip_install -e ".[$extra]" ${use_versions:+-c "scripts/lib/$use_versions.txt"} || return 1
  if [ "$extra" = dev ]; then
    # tf_keras requires the package `tensorflow`, whose files would overwrite those of tensorflow-cpu: without its
    # dependencies it works with either, in the version that is made for the TensorFlow found here.
    pip_install --no-deps "tf_keras==$(tensorflow_series).*" || return 1
  fi
  printf '%s\n' "$key" "$venv" "$python" "$extra" >"$stamp"
}

# As "2.21".
tensorflow_series() {
  "$venv/bin/python" -c '
from importlib.metadata import distributions
names = ("tensorflow", "tensorflow-cpu")
version = next(d.version for d in distributions() if d.metadata["Name"].lower().replace("_", "-") in names)
print(".".join(version.split(".")[:2]))
'
}

pip_install() {
  # In the project's folder, because a path with brackets in it can not be told from an extra.
  (cd -- "$root" && "$venv/bin/python" -m pip install --disable-pip-version-check --no-input "$@") \
    >"$venv/install.log" 2>&1 </dev/null || {
    tail -n 25 "$venv/install.log" >&2
    say "pip install $* failed; the whole output is in $venv/install.log. The next call starts over."
    return 1
  }
}
