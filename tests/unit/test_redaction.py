import time

import pytest

from spark_tensorflow_distributor.redaction import names_a_secret, redacted

SECRETS = (
    *("password", "db_passwd", "userPassword", "passphrase", "DB_PWD", "smtp_pass", "client_secret", "credentials"),
    *("token", "hf_token", "authToken", "API_TOKEN", "token2", "api_tokens", "accesstoken", "sessionToken"),
    *("key", "--key", "access_key", "accessKey", "AWSAccessKey", "AWS_ACCESS_KEY_ID", "apikey", "x-api-key"),
    *("api_keys", "ssh_keys", "refresh_tokens", "RSAKey", "tokens", "hf_tokens", "max_tokens", "maxTokens"),
    *("account_key", "account-key", "privateKey", "private_key_path", "primary_key", "key1", "sharedkey"),
    *("bearer", "jwt", "session_cookie", "github_pat", "hmackey", "storagekey", "masterKey", "X-Amz-Signature", "sig"),
    *("Authorization", "auth", "basic_auth", "connectionString"),
    *("spark.hadoop.fs.s3a.access.key", "spark.hadoop.fs.azure.account.key.me.blob.core.windows.net"),
    *("spark.ssl.keyStorePassword", "fs.azure.sas.box.me", "spark.kubernetes.authenticate.submission.oauthToken"),
)
OTHERS = (
    *("", "rate", "keys", "key_columns", "keyword", "monkey", "turkey", "keyboard", "compass", "passes", "pass_rate"),
    *("tokenizer", "tokenize", "patience", "signature", "sigma", "cookiecutter", "author", "spark.authenticate"),
    *("spark.ssl.keyStore", "spark.kerberos.keytab", "accession", "apiVersion"),
)


@pytest.mark.parametrize("name", SECRETS)
def test_names_of_secrets(name):
    assert names_a_secret(name)


@pytest.mark.parametrize("name", OTHERS)
def test_names_of_other_values(name):
    assert not names_a_secret(name)


@pytest.mark.parametrize("word", ["secret", "password", "token", "access.key", "accesskey", "credential"])
def test_what_spark_redacts_is_a_secret(word):
    for name in (word, word.upper(), f"spark.{word}.file", f"my{word}"):
        assert names_a_secret(name)


@pytest.mark.parametrize("name", ["max_tokens", "tokens", "token_dim", "--max-tokens", "numTokens"])
def test_numbers_of_tokens_are_shown(name):
    for number in (64, 0.5, None, "64", "1e3", "-1.5", "10_000"):
        assert not names_a_secret(name, number)
    assert names_a_secret(name, "a64")
    assert names_a_secret("token", 64)
    assert names_a_secret("api_tokens", 64)


HIDES = {
    "--password hunter2 --lr=0.1": "--password ... --lr=0.1",
    "--conf spark.my.token=c": "--conf spark.my.token=...",
    "db.password=a b c": "db.password=...",
    "postgresql://me:p@ss@h/db": "postgresql://me:...@h/db",
    "postgresql://me:pa/ss@h/db": "postgresql://me:...@h/db",
    "from s3://me:b@host/x to s3://you:c@host/y": "from s3://me:...@host/x to s3://you:...@host/y",
    "jdbc:sqlserver://h;user=sa;password=hunter2;x=1": "jdbc:sqlserver://h;user=sa;password=...;x=1",
    "jdbc:mysql://h/db?user=root&password=hunter2": "jdbc:mysql://h/db?user=root&password=...",
    "jdbc:mysql://h:3306/db?password=p@ss": "jdbc:mysql://h:3306/db?password=...",
    "AccountName=a;AccountKey=abc==;Suffix=z": "AccountName=a;AccountKey=...;Suffix=z",
    "https://h/box?sv=1&sig=a%2Fb": "https://h/box?sv=1&sig=...",
    '{"user": "me", "password": "a b", "size": 1}': '{"user": "me", "password": ..., "size": 1}',
    "{'token': 'a', 'max_tokens': 5}": "{'token': ..., 'max_tokens': 5}",
    "password: 'a; b' user: c": "password: ... user: c",
    "Authorization: Bearer abc": "Authorization: ... abc",
}
SHOWS = (
    *("", "rate=0.5", "s3://bucket/secret-1/day=2", "http://host:8080/path", "C:\\data", "12:30", "--max-tokens 512"),
    *("mail me@host", "https://host/path?at=me@host", "git@host:me/repository", "--max-tokens=512", "--keys a b"),
)


@pytest.mark.parametrize("text", HIDES)
def test_secrets_within_texts(text):
    assert redacted(text) == HIDES[text]


@pytest.mark.parametrize("text", SHOWS)
def test_other_texts_are_unchanged(text):
    assert redacted(text) == text


PIECES = (
    "a",
    "a1",
    "1",
    "://a:",
    "a=",
    "key=",
    "--a ",
    "password='",
    'key="',
    " ",
    "key: ",
    "a@",
    "A",
    "token_",
    "tokens=1",
)


@pytest.mark.parametrize("piece", PIECES)
def test_long_texts_take_little_time(piece):
    text = piece * (1_000_000 // len(piece))
    started = time.process_time()
    redacted(text)
    assert time.process_time() - started < 20
