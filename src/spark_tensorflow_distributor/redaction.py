"""Hides what may be secret in arguments and settings that are shown or kept. Pure.

Every pattern takes time in proportion to the length of a text, because an argument may be megabytes long.
"""

import re

HIDDEN = "..."

# Compared with names in snake_case. Like Spark's own (?i)secret|password|token|access[.]?key|credential, the default of
# spark.redaction.regex, it looks anywhere in a name, so that it also finds spark.ssl.keyStorePassword. Unlike Spark's,
# it knows more names of keys, and shows tokenizers. What may be a table's key (primary_key) is hidden, too: secrets
# have such names in Azure, and a report can do without a column's name.
_WORD_BEGINS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[^A-Za-z0-9]+")
_SECRET_NAME = re.compile(
    r"passw|passphrase|secret|credential|authorization|connection_?string|(?:amz|goog)_signature"
    r"|(?:access|account|api|auth|bearer|encryption|hmac|master|private|refresh|session|shared|signing|ssh|storage)"
    r"_?(?:key|token)"
    r"|(?:^|_)(?:bearer|cookie|jwt|pat|sas)(?:_|$)"
    # As the last word: neither key_columns nor keys, monkey or compass.
    r"|(?:^|_)(?:auth|key|pass|pwd|sig|token)_?\d*$"
)
_TOKEN = re.compile(r"token(?!i[sz])")
_NUMBER = re.compile(r"[-+]?[\d_]*\.?\d+(?:e[-+]?\d+)?", re.IGNORECASE)

# The option of a script, such as --password and Hydra's ++db.password, and what follows it.
_OPTION = re.compile(r"[\w.+~-]+")
_OPTION_AND_VALUE = re.compile(r"(?<!\S)(--?[\w.-]+)(\s+)([^\s-]\S*)")
# In name=value, also in a URL's query or a connection string, and in "name": "value".
_NAME = re.compile(r"(?<![\w.+~-])([\w.+~-]+)[\"']?\s?[=:]\s?")
_VALUE = re.compile(r"\"[^\"]{0,999}\"|'[^']{0,999}'|[^\s;&]*")


def names_a_secret(name: str, value: object = "") -> bool:
    """Return whether a value under this name, of an argument or a setting, may be secret and must not be shown.

    A number under a name such as ``max_tokens`` is not: it counts them.
    """
    words = _WORD_BEGINS.sub("_", name).lower()
    return _SECRET_NAME.search(words) is not None or (not _is_number(value) and _TOKEN.search(words) is not None)


def redacted(text: str) -> str:
    """Return a text with "..." in place of passwords in URLs and of values whose names suggest that they are secret."""
    option, equals, value = text.partition("=")
    if equals and _OPTION.fullmatch(option) and names_a_secret(option, value):
        return f"{option}={HIDDEN}"  # all of it, because a value may contain spaces
    text = _OPTION_AND_VALUE.sub(_without_value, text)
    pieces, end = [], 0
    for name in _NAME.finditer(text):
        if name.start() < end or not names_a_secret(name[1]):
            continue
        found = _VALUE.match(text, name.end())
        if found is not None and names_a_secret(name[1], found[0].strip("\"',)]}")):
            pieces += [text[end : name.end()], HIDDEN]
            end = found.end()
    # Last, because a password that was hidden above may contain "@".
    return re.sub(r"\S+", _without_password, "".join([*pieces, text[end:]]))


def _is_number(value: object) -> bool:
    if isinstance(value, str):
        return len(value) < 40 and _NUMBER.fullmatch(value) is not None
    return value is None or isinstance(value, bool | int | float)


def _without_password(found: re.Match[str]) -> str:
    scheme, separator, address = found[0].partition("://")
    # A password may contain any character, also "@" and "/", although the last should be escaped.
    user_and_password, at, host = address.rpartition("@")
    user, colon, _ = user_and_password.partition(":")
    has_password = at and colon and "/" not in user
    return f"{scheme}{separator}{user}:{HIDDEN}@{host}" if has_password else found[0]


def _without_value(found: re.Match[str]) -> str:
    name, between, value = found.groups()
    return f"{name}{between}{HIDDEN}" if names_a_secret(name, value) else found[0]
