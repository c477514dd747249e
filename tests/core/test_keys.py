"""What looks like a key, by name and by form; and what does not, in the code of trainings."""

import pytest

from dagster_mlops.core import secrets
from dagster_mlops.core.keys import MARK, holds_private_key, names_key, without_keys

# Made up, in the forms that the makers document; in parts, so that no scanner takes this file for a leak.
AWS, GITHUB = "AKIA" + "IOSFODNN7EXAMPLE", "ghp_" + "0123456789abcdefghijABCDEFGHIJ012345"


@pytest.mark.parametrize(
    "name",
    [
        *(".env", "deploy/.env.production", "prod.env", ".envrc", "id_rsa", "keys/id_ed25519", "ID_RSA", "server.pem"),
        *(".aws/credentials", "home/.aws/config", ".ssh/config", ".kube/config", "kubeconfig.yaml", "dev.kubeconfig"),
        *("service_account.json", "my-service-account-prod.json", "credentials.json", "gcp_credentials.json"),
        *("client_secret_1a2b.apps.googleusercontent.com.json", ".config/gcloud/application_default_credentials.json"),
        *(".netrc", ".pypirc", ".npmrc", ".pgpass", ".git-credentials", ".databrickscfg", ".docker/config.json"),
        *("prod.tfvars", "prod.auto.tfvars.json", "terraform.tfstate", "secrets.yaml", "db-secret.yaml", "secrets.py"),
        *(
            "env.prod",
            "deploy/env.production",
            "vault.yml",
            "auth.json",
            "shop-firebase-adminsdk-1a2b.json",
            "key.json",
        ),
        *(".dvc/config.local", "store.p12", "store.jks", "vault.kdbx", "key.ppk", ".streamlit/secrets.toml"),
    ],
)
def test_a_file_that_is_named_after_keys_is_one(name):
    assert names_key(name)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "train.py",
            "src/credentials.py",
            "tokenizer.json",
            "keys.py",
            "environment.yaml",
            "env.py",
            "secret_santa.py",
        ),
        *(
            "keyboard.toml",
            ".gitignore",
            "requirements.txt",
            "params.yaml",
            "data/rows.dvc",
            "monkey.json",
            "env.yaml",
            "author.json",
            "aws/config.yaml",
        ),
    ],
)
def test_code_and_settings_are_none(name):
    assert not names_key(name)


KEYS = [
    ("a.py", 'password = "hunter22"', "hunter22"),
    ("settings.xml", "<server><password>hunter22</password></server>", "hunter22"),
    ("a.py", "PASSWORD: str = 'hunter22'", "hunter22"),
    ("a.py", 'DB_PW = "hunter22"', "hunter22"),
    ("a.sh", "export AZURE_STORAGE_KEY=" + "Zq7xK2ab" * 3, "Zq7xK2ab" * 3),
    ("a.yaml", "fernet_key: " + "Zq7xK2ab" * 3, "Zq7xK2ab" * 3),
    ("a.py", 'os.environ["DB_PASSWORD"] = "hunter22"', "hunter22"),
    ("a.py", 'connect(host="db", user="ml", password="s3cret!")', "s3cret!"),
    ("a.py", "boto = {'secret_access_key': 'wJalrXUtnFEMI/K7MDENG/bPxRfiCY'}", "wJalrXUtnFEMI/K7MDENG/bPxRfiCY"),
    ("a.py", f'session(aws_access_key_id="{AWS}")', AWS),
    ("a.py", f"push('https://x-access-token:{GITHUB}@github.com/me/shop')", GITHUB),
    ("a.py", f"# {GITHUB}", GITHUB),
    ("a.py", 'url = "postgresql://ml:s3cr3t@db/x"', "s3cr3t"),
    ("a.py", 'url = "redis://:s3cr3t@cache"', "s3cr3t"),
    ("a.py", 'headers = {"Authorization": "Bearer abcdefghij1234567890xyz"}', "abcdefghij1234567890xyz"),
    ("a.py", 'os.environ.get("API_TOKEN", "abc123def456ghi")', "abc123def456ghi"),
    ("a.py", 'login("hf_' + 'abcdefghijklmnopqrstuvwxyzABCDEFGH")', "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH"),
    ("a.py", 'key = "sk-' + 'ant-api03-abcdefghijklmnop"', "sk-ant-api03-abcdefghijklmnop"),
    ("a.py", 'k = "AIza' + 'SyA1234567890abcdefghijklmnopqrstuv"', "AIzaSyA1234567890abcdefghijklmnopqrstuv"),
    (
        "a.py",
        'post("https://hooks.slack.com/services/' + 'T00000000/B00000000/XXXXXXXXXXXX")',
        "B00000000/XXXXXXXXXXXX",
    ),
    (
        "a.py",
        'x = "DefaultEndpointsProtocol=https;AccountKey=abcdefghijklmnop0123456789=="',
        "abcdefghijklmnop0123456789==",
    ),
    ("a.py", 'password = """hunter22"""', "hunter22"),
    (
        "a.py",
        'wandb.login(key="' + "0123456789abcdef0123456789abcdef01234567" + '")',
        "0123456789abcdef0123456789abcdef01234567",
    ),
    ("a.ipynb", r' "password = \"hunter22\"\n",', "hunter22"),
    ("a.py", 'OPENAI_API_KEY_PROD = "abc123def456ghi"', "abc123def456ghi"),
    ("a.py", 'password2 = "hunter22"', "hunter22"),
    ("Dockerfile", "ENV DB_PASSWORD=hunter22", "hunter22"),
    ("run.sh", "kubectl create secret generic db --from-literal=password=hunter22 --dry-run", "hunter22"),
    ("run.sh", "mlflow server --admin-password hunter22", "hunter22"),
    ("a.conf", "//registry.example.com/:_authToken=abc123def456", "abc123def456"),
    ("compose.yaml", "      - DB_PASSWORD=hunter22", "hunter22"),
    ("a.py", "db_pwd = 'p@$$w0rd<%'", "p@$$w0rd<%"),
    ("a.py", 'password = f"hunter22"', "hunter22"),
    ("a.json", '  "refresh_token": "1//0gabcdefghijk_lmno",', "1//0gabcdefghijk_lmno"),
    ("c.yaml", "  password: hunter22", "hunter22"),
    ("c.yaml", "  - token: abc123def456 # of ann", "abc123def456"),
    ("c.yaml", "    client-key-data: LS0tLS1CRUdJTiBSU0EgUFJJ", "LS0tLS1CRUdJTiBSU0EgUFJJ"),
    ("c.ini", "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCY", "wJalrXUtnFEMI/K7MDENG/bPxRfiCY"),
    ("run.sh", "export SLACK=xoxb-" + "123456789012-abcdefghij", "123456789012-abcdefghij"),
    ("run.sh", "export DB_PASS=abc123xx", "abc123xx"),
    ("a.toml", 'private_token = "glpat-' + 'abcdefghij0123456789"', "glpat-abcdefghij0123456789"),
]


@pytest.mark.parametrize(("name", "line", "key"), KEYS)
@pytest.mark.parametrize("mark", ["+", "-", " "])
def test_a_key_in_a_line_of_a_diff_is_replaced_and_the_rest_of_the_line_stays(name, line, key, mark):
    before = f"@@ -1 +1 @@\n{mark}{line}\n+x = 1\n".encode()
    clean = without_keys(before, name, diff=True)
    assert key.encode() not in clean and MARK in clean and clean.endswith(b"\n+x = 1\n")
    assert without_keys(clean, name, diff=True) is clean, "once is enough"


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("a.py", 'url = f"postgresql://ml:{password}@db/x"'),
        ("settings.xml", "<password>${env.DB_PASSWORD}</password>"),
        ("a.py", 'token = os.environ["TOKEN"]'),
        ("a.py", 'storage = dg.EnvVar("OPTUNA_STORAGE_2024")'),
        ("a.py", 'pad_token = "<|endoftext|>"'),
        ("a.py", 'mask_token: str = "[MASK_123]"'),
        ("a.py", 'tokenizer = "bert-base-uncased-2024"'),
        ("a.py", 'token = "departure_airport"'),
        ("a.py", 'FEATURES = ["api_token", "logins_30_days_2"]'),
        ("a.py", 'partition_key = "departure_hour_2"'),
        ("a.py", 'compass = "north-east"'),
        ("a.py", 'at = "http://localhost:8080/metrics@v2"'),
        ("a.py", 'css = "sk-toggleable__label-arrow"'),
        ("a.py", 'READ_TOKEN_KEY = "gen_ai.usage.cache_read.input_tokens"'),
        ("run.sh", 'mysql --password="$DB_PASSWORD"'),
        ("c.yaml", "  password: ${DB_PASSWORD}"),
        ("c.yaml", "  max_token: 123456789"),
        ("c.yaml", "  secretName: my-secret-2"),
        ("c.yaml", "  bootstrap: pass"),
        ("uv.lock", '    { url = "https://files.pythonhosted.org/packages/1a/2b.whl", hash = "sha256:1a2b3c4d5e6f" },'),
    ],
)
def test_a_line_of_code_without_a_key_stays_as_it_is(name, line):
    before = f"+{line}\n".encode()
    assert without_keys(before, name, diff=True) is before


def test_a_private_key_is_found_by_its_first_line_and_by_its_middle():
    body = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj"
    for text in (
        f"-----BEGIN RSA PRIVATE KEY-----\n{body}\n",
        "-----BEGIN OPENSSH PRIVATE KEY-----\n",
        "-----BEGIN PGP PRIVATE KEY BLOCK-----\n",
        '+{"type": "service_account", "private_key": "-----BEGIN PRIVATE KEY-----\\nMIIE"}',
        f"@@ -9,4 +9,4 @@\n {body}\n+{body}\n",
        "PuTTY-User-Key-File-3: ssh-ed25519\n",
    ):
        assert holds_private_key(text.encode()), text
    hashes = "".join(f"+{'0123456789abcdef' * 4}\n" for _ in range(3))
    assert not holds_private_key(
        f"{hashes}+-----BEGIN CERTIFICATE-----\n+caBundle: LS0tLS1CRUdJTiBDRVJUSUZJ\n".encode()
    )


def test_a_credential_that_this_process_has_used_is_found_by_its_value(monkeypatch):
    monkeypatch.setattr(secrets, "_values", ())
    text = "+connect('correct-horse-9', caf\u00e9)\n".encode("latin-1")
    assert without_keys(text, "a.py") is text
    secrets.remember(["correct-horse-9"])
    assert without_keys(text, "a.py") == text.replace(b"correct-horse-9", MARK)
