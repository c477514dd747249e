r"""Table of the forms in which text has credentials: names of values, what stands between a name and its value, and
forms by themselves. Masks and the search for keys in files read this one table.

A form comes with examples, in which § stands for the credential (¤: for sixteen capitals), and with texts that only
look like it. To add a form, add a row: `tests/core/test_credential_forms.py` runs each through both uses.

The time is linear in the length of a text: a run of word characters is read from its start only, what a value covers is
not read again, and everything else that repeats has a bound.
"""

from typing import NamedTuple


class Form(NamedTuple):
    """A form: its pattern, texts of which one is in each text that has the form, and examples.

    The pattern's last group is the credential, or, without one, all of it. A name with ``password`` says that it may be
    a plain word; other credentials are hardly one.
    """

    name: str
    hints: tuple[str, ...]
    pattern: str
    examples: tuple[str, ...]
    harmless: tuple[str, ...] = ()


# --- names of values

_ENVIRONMENTS = (
    r"\d{1,3}|prod(?:uction)?|dev(?:elopment)?|test|staging|live|old|new|base|main|default|primary|secondary"
    r"|value|plain(?:text)?|b64|base64|ro|rw|v\d"
)
PASSWORD = (
    r"(?<![a-z])pass|passw(?:or)?ds?|passwort|passphrase|passcode|pwd|(?<![a-z])(?:bind)?pw|requirepass|masterauth"
)
# Tokens of language models and of paging are not credentials, nor are the keys of tables.
_NOT_TOKENS = "".join(
    f"(?<!{part})"
    for part in ("bos_", "eos_", "pad_", "unk_", "cls_", "sep_", "mask_", "max_", "page", "page_", "next", "next_")
)
_KEYS = "api|access|account|private|secret|shared|subscription|encryption|signing|auth|storage|master|fernet"
SECRET = (
    rf"(?:{PASSWORD}|(?<![a-z])_auth|(?<![\w\-])x[_-]auth|secrets?|credentials?|creds|{_NOT_TOKENS}token"
    rf"|client-key-data|(?:{_KEYS})[._-]?keys?)(?:[._-]?(?:{_ENVIRONMENTS}))?|account\.key\.[\w.]{{1,99}}"
)
HEADER = "authorization|cookie"
QUERY = "signature|sig|key|code"  # in the query of an address or a connection string only
PARTS_OF_NAMES = ("pass", "pw", "secret", "cred", "token", "auth", "cookie", "sig", "key", "code=")
"""Parts of all names above."""

SECRET_NAMES = """
    password DB_PASSWORD DB_PASSWORD_PROD
    PWD db_pw DB_PASS passphrase Passwort passwords api_key apikey
    OPENAI_API_KEY_PROD secret_access_key AccountKey fs.s3a.secret.key client_secret refresh_token TOKEN_2
    db.password.value secret_value db_password_ro apiTokenV2 password.0 db_creds
    AZURE_STORAGE_KEY fernet_key client-key-data requirepass x-auth
"""
OTHER_NAMES = """
    max_token max_tokens num_tokens pad_token eos_token next_page_token tokenizer secretary password_resets primary_key
    has_password_reset partition_key asset_key keys key author passengers compass bypass passed signature code
    secretName
"""

# --- what stands between a name and its value

_QUOTE = r"\\{0,9}[\"']?"
_MARKUP = r"(?:\x1b\[[\d;]{0,20}m|`|\*{1,2}(?!\*))?"  # of a terminal's colours, or of Markdown
SEPARATORS = (
    Form(
        "block",
        (),
        r":[ \t]{1,3}[|>][+\-]?\d?[ \t]{0,9}\n[ \t]{1,40}",
        ("password: |\n  §", "a:\n  token: >-\n    §\n    §\n  b: 1"),
    ),
    Form(
        *("below", (), rf"{_QUOTE}:[ \t]{{0,9}}\n[ \t]{{1,40}}(?:-[ \t])?"),
        ("password:\n  §", "- password:\n    '§'", "passwords:\n  - §\n  - §\nother: 1"),
        (
            "password:\n  secretKeyRef:\n    name: db",
            "Set the token:\n  MLFLOW_TRACKING_TOKEN",
            "if token:\n    read2(token)",
            "secrets:\n  - db-password",
        ),
    ),
    Form(
        *("value", (), rf"(?:{_QUOTE},\s{{0,60}}|{_QUOTE}\s{{1,60}}){_QUOTE}value{_QUOTE}[ \t]{{0,3}}[:=][ \t]{{0,3}}"),
        ('{"name":"DB_PASSWORD","value":"§"}', "- name: DB_PASSWORD\n  value: §", '<add key="password" value="§" />'),
        ("- name: DB_PASSWORD\n  valueFrom:\n    secretKeyRef: {name: db}",),
    ),
    Form(
        *("item", (), r"[\"'],\s{0,60}(?=b?[\"'])"),
        (
            '["--password","§"]',
            "['mysql', '--password', '§']",
            "('password', '§')",
            "(b'x-api-key', b'§')",
            '["X-Api-Key", "§"]',
            'os.getenv("API_TOKEN", "§")',
        ),
        (
            "['token', 'age', 'secret', 'day'] and (token, age)",
            "('int32_key', 'int64_key')",
            "('password', 'token')",
            'option("--password", "--pw")',
        ),
    ),
    Form(
        *("line", (), r"[\"']?,?[ \t]{0,3}\\?\n[ \t]{0,40}(?:-[ \t])?"),
        ("args:\n- --password\n- §\n", 'run(\n  "--password",\n  "§",\n)', "psql --password \\\n  §"),
        ("--password\n  The password of the database", "--token\n--port", '"--password",\n    required=True,'),
    ),
    Form("element", (), r"</(?:name|key)>\s{0,60}<value>", ("<name>fs.s3a.secret.key</name>\n<value>§</value>",)),
    Form("tag", (), ">", ("<server><password>§</password></server>",), ("List<Token> tokens, if password > 3",)),
    Form(
        *("cell", (), r"[`*]{0,3}[ \t]{0,40}\|[ \t]{0,40}`?"),
        ("| password | § |", "| user | ml |\n| **password** | `§` |\n"),
        (
            "| password | email |",
            "x: AssetKey | AssetRecords2",
            "-> Authorization | Response2",
            "| token | count |\n|---|---:|\n| a | 3 |",
            "| token | 512 |",
            "| secret | S3_x |\n|---|---|",
        ),
    ),
    Form("equal", (), rf"{_QUOTE}\]?[ \t]{{0,40}}==[ \t]{{0,40}}", ("password == '§'",)),
    Form(
        "assigned",
        (),
        rf"{_QUOTE}(?:\[[\w\"'\-]{{1,40}}\]|\])?{_MARKUP}[ \t]{{0,40}}"
        r"(?:=>?|:=|:[ \t]?(?:str|bytes|SecretStr|Optional\[str\]|str \| None)[ \t]?=|:|%(?:25)?3D)"
        rf"{_MARKUP}[ \t]{{0,40}}{_MARKUP}",
        (
            *(
                "host=db password=§ dbname=x",
                "password: §",
                "fernet_key = §",
                'password: str = "§"',
                '{"password":"§"}',
            ),
            *("os.environ['DB_PASSWORD'] = '§'", "password = '''\n§\n§'''", 'passwords = ["§", "§"]', "pw := '§'"),
            *(
                'dsn = "host=db password=§"',
                'x = "Server=h;Pwd=§;Encrypt=yes"',
                "odbc?x=DRIVER%3DODBC%3BPWD%3D§%3BDATABASE%3Dx",
            ),
            *("passwords[0]=§", "password['db'] = '§'", "**Password:** §", "**password**: `§`", "`password`: `§`"),
            *(
                "\x1b[36mpassword\x1b[0m=\x1b[35m'§'\x1b[0m",
                "https://h/x?key=§#a",
            ),
            *("https://h/x?code=§", "https://h/x?key=§", "page=2&key=§&sort=a", "redis:6379,key=§", "x-auth: §"),
            *(
                "Authorization: Token §",
                "Cookie: session=§",
                "ENV DB_PASSWORD=§",
                "--from-literal=password=§ --dry-run",
            ),
        ),
        (
            *('{"password":{"type":"string"}, "token": {"x": 1}}', "password: {type: string}", "{'password': {}}"),
            *("password=${TOKEN} secret=None", "password=env:DB_PASSWORD", "password: {{ db_password }}", "keys=a,b"),
            *("s3://bucket/key=3/token=abc/part.parquet", "key: 9f86d081884c7d659a2feaa0c55ad015"),
            *(
                "https://h/x?code=404",
                "https://h/x?code=US",
                "h?a=1&ssl_key=/srv/client-key.pem",
                "lag=3,key=departure",
                "cache=1,key=9f86d081884c7d659a2feaa0c55ad015",
            ),
        ),
    ),
    Form(
        *("spaced", (), r"[ \t]{1,3}"),
        (
            "mlflow server --token § --port 5000",
            "ALTER USER u WITH PASSWORD '§'",
            "requirepass §",
            "(TYPE s3, SECRET '§')",
        ),
        ("secret 'db-access' not found", 'secret "db-access" not found', "--token TOKEN", "a password is needed"),
    ),
)

# --- forms by themselves

_PEM = "-----BEGIN"  # in parts, so that no scanner takes this file for a leak
FORMS = (
    Form(
        *("password of an encoded address", ("%3A", "%3a")),
        r"(?i)(?<=%3A%2F%2F)((?:[^%\s&]|%(?!40|2F|3A))*%3A(?:[^%\s&]|%(?!40|2F))*)(?=%40)",
        ("https://h/login?next=postgresql%3A%2F%2Fml%3A§%40db%2Fx", "postgresql%3a%2f%2fml%3a§%40db%2fx"),
    ),
    Form(
        *("header", ("earer ", "EARER ", "asic ", "ASIC ")),
        r"(?<!\w)(?:[Bb]earer|BEARER|[Bb]asic|BASIC) {1,9}(?=[a-z]{0,99}[^a-z\s])([\w.~+/\-]{6,}=*)",
        ("sent Bearer §.§ to h", '{"x": "Basic §=="}'),
        ("use basic authentication or a bearer token here",),
    ),
    Form(
        "password of netrc",
        ("login",),
        r"\blogin\s{1,9}\S{1,200}\s{1,9}password\s{1,9}(\S+)",
        ("machine h login u password §",),
    ),
    Form(
        *(
            "password of SQL",
            ("dentified", "DENTIFIED"),
            r"\b(?:IDENTIFIED BY ['\"]?|(?i:identified by) ['\"])([^\s'\"]+)",
        ),
        ("CREATE USER u IDENTIFIED BY '§'", "ALTER USER u IDENTIFIED BY §"),
        ("rows identified by customer_id2",),
    ),
    Form(
        "password of mysql",
        ("mysql", "mariadb"),
        r"\b(?:mysql|mariadb)\w{0,9}[^\n]{0,200}?\s-p(\S+)",
        ("mysqldump -u ml -p§ db",),
    ),
    Form(
        *("password of Go", ("@tcp(", "@unix("), r"(?<![\w.\-])[\w.\-]{1,64}:([^\s@]{1,200})(?=@(?:tcp|unix)\()"),
        ("ml:§@tcp(127.0.0.1:3306)/db",),
    ),
    Form(
        *(
            "password of curl",
            (" -u", "--user"),
            r"(?<!\S)(?:-u|--user)[ =]{0,3}['\"]?([^\s:'\"]{1,200}):(?!\1\b|\d+\b)([^\s'\"]+)",
        ),
        ("curl -u ml:§ http://h",),
        ("docker run --user 1000:1000 image", "git push -u origin main"),
    ),
    Form(
        "password of a list",
        ("'-u'", '"-u"'),
        r"[\"']-u[\"'],[ ]?[\"'][^\"':\n]{1,200}:([^\"'\n]+)",
        ("['curl', '-u', 'ml:§']",),
    ),
    Form(
        *(
            "password of Oracle",
            ("oracle:", "sqlplus"),
            r"\b(?:oracle:(?:thin|oci):|sqlplus )[^\s/@]{1,200}/([^\s@]{1,200})(?=@)",
        ),
        ("jdbc:oracle:thin:scott/§@//h:1521/x",),
    ),
    Form(
        *("key in words", ("key", "Key", "KEY")),
        rf"(?i)\b(?:{_KEYS}) keys?(?: provided)?(?:[ ]?[:=]| is)[ ]{{0,3}}[\"'`*]{{0,3}}"
        r"(?=[^\s\"'`]{0,99}\d)([^\s\"'`,;)]{8,})",
        ("API key: §", "Incorrect API key provided: §", "Secret access key: '§'", "the api key is §"),
        ("API key: my_key", "the storage key 2026-01"),
    ),
    Form(
        *("password of other clients", ("docker", "podman", "az login", "mongo", "redis-cli", "-storepass")),
        r"(?:\b(?:(?:docker|podman|az) login|mongo(?:sh|dump|restore|import|export)?)\b[^\n]{0,200}?\s-p"
        r"|\bredis-cli\b[^\n]{0,200}?\s-a|\s-storepass)[ ]{1,3}[\"']?([^\s\"'\-][^\s\"']*)",
        ("docker login -u ml -p § r.io", "mongosh -u ml -p '§' h", "redis-cli -h h -a §", "keytool -storepass §"),
        ("docker run -p 5000:5000 image",),
    ),
    Form(
        *("login of Docker", ('auth"',), r"\"auth\\?\":\s?\\?\"([A-Za-z0-9+/]{8,}={0,2})\""),
        ('{"auths": {"r.io": {"auth": "§§"}}}',),
        ('{"auth": "oauth2"}',),
    ),
    Form("password of sshpass", ("sshpass",), r"\bsshpass\s{1,9}-p\s{0,9}['\"]?([^\s'\"]+)", ("sshpass -p § ssh h",)),
    Form(
        *("password of requests", ("auth", "Auth", "cred")),
        r"(?:(?<![a-z])auth|Auth|cred(?:ential)?s)[ \t]{0,3}=?"
        r"[ \t]{0,3}\([ \t]{0,3}[\"'][^\"'\n]{0,200}[\"'],[ \t]{0,3}[\"']([^\"'\n]+)",
        ("auth=('ml', '§')", "credentials=('ml', '§')", 'HTTPBasicAuth("ml", "§")'),
        ("authors = ('Ann', 'Bob')",),
    ),
    Form(
        *("long key", ("key", "KEY", "Key")),
        r"(?:key|KEY|Key)\\{0,9}[\"']?\]?[ \t]{0,9}(?:=>?|:)[ \t]{0,9}[\"']"
        r"(?=[^\"'\n]{0,99}[a-z])(?=[^\"'\n]{0,99}[A-Z])"
        r"(?=[^\"'\n]{0,99}\d)([A-Za-z0-9+=]{32,})(?=[\"'])",
        ("KEY = '§§§§'",),
        ("'cache_key': '9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08'",),
    ),
    Form(
        "key of a login",
        ("login(",),
        r"login\([^()\n]{0,99}?key\s{0,9}=\s{0,9}[\"']([^\"'\n]+)",
        ('wandb.login(key="§")',),
    ),
    Form(
        *("private key", ("PRIVATE KEY",)),
        r"(?s)-----BEGIN [A-Z ]{0,40}PRIVATE KEY(?: BLOCK)?-----.*?(?:-----END [A-Z ]{1,60}-----|\Z)",
        (
            f"{_PEM} RSA PRIVATE KEY-----\nMIIE§\nab§==\n-----END RSA PRIVATE KEY-----",
            f"{_PEM} PRIVATE KEY-----\\nMIIE§",
        ),
    ),
    Form(
        "hooks of Slack, Discord, Teams and Telegram",
        ("hooks.slack", "/webhook", "telegram.org/bot"),
        r"(?:hooks\.slack\.com/services/|discord(?:app)?\.com/api/webhooks/|webhook\.office\.com/webhookb2/"
        r"|api\.telegram\.org/bot)([\w/@:\-]+)",
        (
            *("https://hooks.slack.com/services/T0/B0/§", "https://discord.com/api/webhooks/12/§"),
            *("https://x.webhook.office.com/webhookb2/§", "https://api.telegram.org/bot12:§/sendMessage"),
        ),
    ),
    Form("signature of Azure", ("sig=",), r"(?<=[?&]sig=)[\w%+/=\-]{6,}", ("https://h/c?sr=b&sig=§%3D",)),
    Form(
        *("JSON Web Token", ("eyJ",), r"(?<![\w\-])eyJ[\w\-]{8,}\.[\w\-]{8,}(?:\.[\w\-]*)?"),
        ("eyJhbGciOiJI.eyJzdWIi§.§",),
    ),
    # The makers' prefixes
    Form("AWS", ("AKIA", "ASIA", "ABIA", "ACCA"), r"(?<!\w)(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}(?!\w)", ("AKIA¤",)),
    Form(
        "Google",
        ("AIza", "ya29.", "GOCSPX-"),
        r"(?<![\w\-])(?:AIza[\w\-]{30,}|ya29\.[\w\-]{20,}|GOCSPX-[\w\-]{20,})",
        ("AIza§§§§",),
    ),
    Form(
        *(
            "GitHub, Hugging Face, npm and Grafana",
            ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "hf_", "npm_", "glc_"),
        ),
        r"(?<!\w)(?:(?:gh[pousr]|github_pat|glc)_[\w+/=]{20,}|(?:hf|npm)_[A-Za-z0-9]{20,})",
        ("# ghp_§§§§", "hf_§§§§"),
        ("hf_hub_download_with_a_progress_bar",),
    ),
    Form(
        "GitLab",
        ("glpat-", "gldt-", "glrt-", "glptt-", "glcbt-", "glsoat-"),
        r"\bgl(?:pat|dt|rt|ptt|cbt|soat)-[\w\-]{16,}",
        ("glpat-§§",),
    ),
    Form("Slack", ("xox", "xapp-"), r"(?<![\w\-])(?:xox[abeoprs]|xapp-\d)-[\w\-]{10,}", ("xoxb-1234-§",)),
    Form(
        *("OpenAI, Stripe and SendGrid", ("sk-", "k_live_", "SG.")),
        r"(?<![\w\-])(?:sk-(?=[a-zA-Z_\-]{0,99}\d)[\w\-]{16,}|[rs]k_live_\w{20,}|SG\.[\w\-]{16,}\.[\w\-]{16,})",
        ("sk-proj-§§",),
        ("sk-toggleable__label-arrow",),
    ),
    Form(
        *(
            "PyPI, Databricks, Vault, DigitalOcean, Docker and Atlassian",
            ("pypi-AgE", "dapi", "hvs.", "hvb.", "dop_v1_", "dckr_pat_", "ATATT3"),
        ),
        r"(?<!\w)(?:pypi-AgE[\w\-]{30,}|dapi[0-9a-f]{32}|hv[sb]\.[\w\-]{16,}|dop_v1_[0-9a-f]{40,}|dckr_pat_[\w\-]{16,}|ATATT3[\w=\-]{40,})",
        ("hvs.§§", "dckr_pat_§§"),
    ),
    Form(
        *(
            "Groq, xAI, NVIDIA, Replicate, Pinecone, LangSmith, Weights & Biases, Prefect, Notion, Linear and others",
            (
                *("gsk_", "xai-", "nvapi-", "pplx-", "r8_", "pcsk_", "lsv2_", "wandb_v1_", "pnu_", "pnb_", "ntn_"),
                *(
                    "lin_api_",
                    "shpat_",
                    "sq0atp-",
                    "NRAK-",
                    "dp.pt.",
                    "PMAK-",
                    "sntrys_",
                    "HRKU-",
                    ".atlasv1.",
                    "AGE-SECRET",
                ),
            ),
        ),
        r"(?<![\w\-])(?:(?:gsk|r8|pcsk|lsv2|wandb_v1|pnu|pnb|ntn|lin_api|shpat|sntrys)_(?=[a-zA-Z_]{0,99}\d)\w{24,}"
        r"|(?:xai|nvapi|pplx|sq0atp|NRAK|PMAK|HRKU)-(?=[a-zA-Z_\-]{0,99}\d)[\w\-]{20,}"
        r"|dp\.pt\.\w{30,}|\w{14}\.atlasv1\.[\w\-]{40,}|AGE-SECRET-KEY-1[A-Z0-9]{20,})",
        ("gsk_§§§§", "nvapi-§§§", "dp.pt.§§§§"),
        ("pnb_and_other_names_of_columns_in_words",),
    ),
)

# --- values

HARMLESS = (
    r"(?i)(?:none|null|true|false|yes|no|any|optional|str(?:ing)?|text|varchar|bytes|u?int(?:8|16|32|64)?|integer|long"
    r"|float(?:16|32|64)?|double|bool(?:ean)?|object|category|date|timestamp|)"
)
VARIABLE = r"(?:env:[A-Z]\w*|\$[A-Z][A-Z0-9_]*|\$\{\w+\}|\$?\{\{.*)\W{0,3}$"  # its name, or a template
QUOTED = (
    r"(?i)(?:[brf]{1,2}|\w{1,30}\()?(?:(?P<triple>\"\"\"|''')(?P<lines>(?s:(?!(?P=triple))(?:\\.|[^\\])){0,2000})(?=(?P=triple))"
    r"|(?P<quote>\"\"\"|'''|[\"'])(?P<text>(?:(?!(?P=quote))[^\\\n]|\\.|(?P=quote){2})*)|\\+[\"'](?P<inner>[^\"'\\\n]*))"
)
# Commas, semicolons and quotes may be part of a password, unless what follows begins something else.
_CHARACTER = (
    r"(?:[^\s&;,\"'%]|&(?!(?:amp;)?[\w.\-]{1,40}=|\s|$)"
    r"|[;,](?!\s|$|[\w.\- \"']{1,40}[=:])|[\"'](?![\s,;&)}\]:>.\\]|$)|%(?!3B|26))"
)
UNQUOTED, SHORT = rf"(?i){_CHARACTER}+", rf"(?i){_CHARACTER}{{1,500}}"
UNQUOTED_QUERY = rf"(?i)(?:(?!#){_CHARACTER})+"  # a fragment follows it
OBJECT = r"\{\s*(?:\\{0,9}[\"']|\w+\s*:|\})"  # of JSON or YAML
KEY_FILE = r"[~.]{0,2}(?:/[\w.\-]{1,100}){1,20}\.(?:pem|key|crt|json|p8|p12)"
BRACES = r"\{[^{}\n]{1,200}\}"  # of ODBC
LIST = r"\[[^\[\]]{1,2000}\]"
IN_LIST = r"\\{0,9}(?P<quote>[\"'])(?P<text>(?:(?!(?P=quote))[^\\\n]|\\.)*)|[^\s,\[\]\"'\\]+"
PROSE = r"[a-z]+(?=[ \t]+[A-Za-z])"  # password: check it
TO_THE_QUOTE = {"": r"[^\n]+", "'": r"(?:[^'\\\n]|\\.)+", '"': r"(?:[^\"\\\n]|\\.)+"}  # by the quote around it
IN_ELEMENT = r"[^<\n]{1,500}(?=</)"
IN_CELL = r"([^\s|`]{4,200})`?[ \t]{0,40}(?:\|[ \t]{0,40})?(?=\n(?![ \t|]{0,9}:?-{2})|$)"
ALONE = (  # on a line, and not an argument or a call
    r"[\"']?(?![\w.]{1,60}(?:=[^\s=]|\())([^\s\"'#\-][^\s\"',]{0,500})[\"']?[ \t]{0,40},?(?:[ \t]{0,3}\\)?(?=\n|$)"
)
WORD = r"[A-Za-z]+(?:[._\-/][A-Za-z]+)*|[\d.,e+%\-]+"  # or a number

# --- addresses

ADDRESS = r":\\?/\\?/([^\s\"]*)"
HOST = (  # of those that no password looks like
    r"(?i)(?:localhost|[\w\-]{1,63}:\d{2,5}|\[[\w:.]{2,40}\]|(?:[\w\-]{1,63}\.){1,8}[a-z]{2,20}|(?:\d{1,3}\.){3}\d{1,3})"
    r"(?::\d{1,5})?(?=[/?#,;]|$)"
)
PORT = r"\d{2,5}$"
# An address without a scheme has a port: ann:x@db:5432
HOST_AND_PORT = r"@[\w\-.]{1,253}:\d{2,5}(?!\w)"
WITHOUT_SCHEME = rf"(?<![\w.\-/:@])[\w.\-]{{1,64}}:([^\s/:@'\"{{}}]{{1,200}})(?={HOST_AND_PORT})"
