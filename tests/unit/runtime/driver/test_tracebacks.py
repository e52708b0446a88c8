"""Which frames of a remote traceback the user sees."""

import traceback

from spark_tensorflow_distributor.runtime.driver.tracebacks import (
    hide_library_frames,
    shown_traceback,
    without_message,
)

REMOTE = """\
Traceback (most recent call last):
  File "<spark_tensorflow_distributor>/runtime/trainer/main.py", line 120, in train
    value = call()
            ^^^^^^
  File "/home/me/spark_tensorflow_distributor/train.py", line 12, in train
    model.fit(x, y)
  File "/env/lib/python3.11/site-packages/spark_tensorflow_distributor/training/keras_api.py", line 51, in method
    return replacement(call)
  [Previous line repeated 5 more times]
  File "/env/lib/python3.11/site-packages/keras/src/utils/traceback_utils.py", line 122, in error_handler
    raise e.with_traceback(filtered_tb) from None
  File "/home/me/spark_tensorflow_distributor/train.py", line 5, in on_epoch_end
    raise ValueError("boom")
ValueError: boom
"""


def test_library_frames_are_hidden_and_user_frames_are_not():
    assert hide_library_frames(REMOTE).splitlines() == [
        "Traceback (most recent call last):",
        '  File "/home/me/spark_tensorflow_distributor/train.py", line 12, in train',
        "    model.fit(x, y)",
        '  File "/env/lib/python3.11/site-packages/keras/src/utils/traceback_utils.py", line 122, in error_handler',
        "    raise e.with_traceback(filtered_tb) from None",
        '  File "/home/me/spark_tensorflow_distributor/train.py", line 5, in on_epoch_end',
        '    raise ValueError("boom")',
        "ValueError: boom",
    ]


def test_an_exception_with_only_library_frames_keeps_them():
    own = REMOTE.split('  File "/home')[0] + "KeyError: 'rows'"
    chained = f"{own}\n\nDuring handling of the above exception, another exception occurred:\n\n{REMOTE}"
    shown = hide_library_frames(chained)
    assert shown.startswith(own)
    assert shown.endswith(hide_library_frames(REMOTE))


def test_an_error_of_the_library_itself_needs_no_frames_of_the_library():
    frames = REMOTE.split('  File "/home')[0]
    own = f"{frames}spark_tensorflow_distributor.errors.DataError: a null\nin y\n"
    for message in ("a null\nin y", "spark_tensorflow_distributor.errors.DataError: a null\nin y"):
        assert shown_traceback(own, message) == ""
    assert shown_traceback(own + "a note\n", "a null") == own.removeprefix(frames) + "a note"
    # The exception of the user's function that led to it is shown.
    link = "\nThe above exception was the direct cause of the following exception:\n\n"
    assert shown_traceback(f"{REMOTE}{link}{own}", "a null\nin y") == hide_library_frames(REMOTE)
    # The line of the user's program that called the library is shown, too.
    called = REMOTE.replace("ValueError: boom", "spark_tensorflow_distributor.errors.DataError: a null")
    assert shown_traceback(called, "a null").splitlines() == hide_library_frames(REMOTE).splitlines()[:-1]


def test_real_tracebacks_without_the_librarys_frames_stay_as_they_are():
    def fail():
        try:
            raise KeyError("first")
        except KeyError as error:
            raise ValueError('two\n  File "x", line 1\nlines') from error

    try:
        fail()
    except ValueError as error:
        text = "".join(traceback.format_exception(error)).rstrip()
    assert hide_library_frames(text) == text


def test_a_message_is_shown_only_if_the_traceback_lacks_it():
    assert without_message(REMOTE, "ValueError: boom").endswith('raise ValueError("boom")')
    assert without_message(REMOTE + "a note\n", "ValueError: boom").endswith("boom\na note")
    assert without_message("ValueError: boom", "boom") == "ValueError: boom"
    # A class of a notebook or script, whose message begins with the class alone.
    assert without_message("frames\n__main__.OwnError: boom", "OwnError: boom") == "frames"
    assert without_message("", "boom") == ""
