import traceback

import pytest

from spark_tensorflow_distributor import ConfigurationError, TrainingFailedError
from spark_tensorflow_distributor.formatting import (
    a_type,
    amount,
    first_line,
    gibibytes,
    mebibytes,
    one_line,
    position_text,
    printable,
    printable_exception,
    printable_line,
    rank_list,
    sentence,
)

ATTACKS = {
    "clear the screen": "\x1b[2J\x1b[1;1H",
    "move up": "\x1b[5A",
    "title": "\x1b]0;mine\x07",
    "clipboard": "\x1b]52;c;cm0gLXJmIH4=\x1b\\",
    "device control": "\x1bP+q544e\x1b\\",
    "answer back": "\x05\x1b[c\x1b[6n",
    "8-bit": "\x9b2J\x9d0;mine\x9c",
    "character set": "\x0e\x1b(0",
    "start the line over": "spoofed\rreal",
    "backspaces": "real\x08\x08\x08\x08fake",
    "colour": "\x1b[31mred\x1b[0m",
    "unfinished": "\x1b[",
    "nul": "\x00",
}


def test_sizes():
    assert mebibytes(3 << 19) == "1.5 MiB"
    assert gibibytes(3 << 29) == "1.5 GiB"
    assert [amount(size) for size in (3 << 19, (1 << 30) - 1, 1 << 30)] == ["1.5 MiB", "1024.0 MiB", "1.0 GiB"]


def test_an_error():
    assert one_line(KeyError("name")) == "KeyError: 'name'"
    error = ConfigurationError("Too small.\n")
    assert one_line(error) == "spark_tensorflow_distributor.errors.ConfigurationError: Too small."
    assert one_line(error, with_module=False) == "ConfigurationError: Too small."
    assert one_line(ValueError(), with_module=False) == "ValueError"


def test_the_first_line_of_a_text():
    assert first_line("\n one\ntwo") == "one"
    assert first_line("x" * 160) == "x" * 160
    assert first_line("x" * 20, 10) == "x" * 9 + "…"


def test_ranks():
    assert rank_list([3]) == "rank 3"
    assert rank_list([0, 1]) == "ranks 0, 1"
    assert rank_list(range(11)) == "ranks 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ..."


def test_the_article_of_a_type():
    assert [a_type(value) for value in (1, "x", None, object(), [])] == [
        "an int",
        "a str",
        "None",
        "an object",
        "a list",
    ]
    assert a_type(type("UserList", (), {})()) == "a UserList"


def test_a_quoted_text_ends_with_one_full_stop():
    texts = ["It failed", "It failed.", "Why?", " It failed. ", KeyError("x")]
    assert [sentence(text) for text in texts] == ["It failed.", "It failed.", "Why?", "It failed.", "'x'."]


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_nothing_that_a_terminal_obeys_is_left(attack):
    for shown in (printable(attack), printable_line(attack), str(ConfigurationError(attack))):
        assert shown.isprintable()


def test_other_text_is_unchanged():
    text = "ä\t漢字 \U0001f600\n  next line\n"
    assert printable(text) == text
    assert printable("one\r\ntwo") == "one\ntwo"
    assert printable_line("one\n[rank 0 @ h] two") == "one\\n[rank 0 @ h] two"
    assert printable("\x1b[1mbold\x1b[0m \x07") == "bold \\x07"


class FromElsewhere(Exception):
    def __str__(self):
        return "\x1b[2J"


def noted():
    error = KeyError("k")
    error.__notes__ = ["\x1b]0;note\x07"]
    return error


@pytest.mark.parametrize(
    "error", [ValueError("\x1b]0;x\x07", 3), noted(), KeyError("\x1b"), OSError(5, "\x9b2J", "\x1b[2Jname")]
)
def test_an_exception_keeps_its_type_and_its_other_arguments(error):
    cleaned = printable_exception(error)
    assert cleaned is error
    printed = "".join(traceback.format_exception(cleaned))
    assert printed.replace("\n", "").isprintable()
    if isinstance(error, ValueError):
        assert error.args[1] == 3


@pytest.mark.parametrize("error", [FromElsewhere(), SyntaxError("bad", ("file", 1, 1, "\x1b[2J"))])
def test_an_exception_whose_text_comes_from_elsewhere_cannot_be_printed(error):
    assert printable_exception(error) is None


def test_errors_of_the_library_are_printed_safely():
    text = "".join(traceback.format_exception(TrainingFailedError("\x1b[2Jline\nline \x07")))
    assert "\x1b" not in text
    assert "line\nline \\x07" in text


def test_a_position_in_fit_counts_calls_and_epochs_from_1():
    place = {"fit": 0, "epoch": 2, "step": 17}
    assert position_text(place) == "epoch 3, after step 17"
    assert position_text({**place, "fit": 1}) == "fit 2, epoch 3, after step 17"
    assert position_text(place, of_call=True) == "fit() 1 at epoch 3, step 17"
    assert position_text({"fit": 1, "epoch": 0, "step": 0}, of_call=True) == "fit() 2 at epoch 1, step 0"
