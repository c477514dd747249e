"""One mask for every text that leaves: credentials go, in any form and by their value, and nothing else does."""

import time

import dagster as dg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagster_mlops.core import secrets
from dagster_mlops.dvc import DvcResource
from dagster_mlops.dvc.store.remotes import in_memory
from dagster_mlops.errors import DagsterMlopsError, MissingExtraError
from dagster_mlops.mlflow import MlflowResource
from dagster_mlops.provenance import Record, Ref, TrainingRun, credentials, mask_credentials
from dagster_mlops.provenance.credentials import masked_strings, remember_credentials

S = "Zq7xK2"
KEY = f"-----BEGIN RSA PRIVATE KEY-----\nMIIE{S}\nab{S}==\n-----END RSA PRIVATE KEY-----"
FORMS = [
    # addresses
    f"postgresql://ml:{S}@db:5432/mlflow",
    f"postgresql://ml:p@{S}/x@db.corp.com/mlflow",
    f"postgresql://ml:{S}/@{S}@db/mlflow",
    f"mysql+pymysql://ml:a/{S}@db:3306/x",
    f"redis://:{S}@cache:6379/0",
    f"amqps://u:{S}%2F{S}@mq/vhost",
    f"mongodb+srv://u:{S}@a.mongodb.net,b.mongodb.net/db",
    f"s3://AKIA1:{S}/{S}@bucket/x",
    f"HTTPS://{S}@github.com/o/r.git",
    f"https://x-access-token:{S}@github.com/o/r.git@v1.2.3",
    f"git+https://{S}@github.com/o/r.git@v1",
    f"http://u:{S}@h1,http://u:{S}@h2",
    f"ftp://u:{S}#{S}@host.com/f",
    f"databricks://token:{S}@adb.net",
    f"see https://h/x?pass={S}",
    f"https://h/x?page=2&api_key={S}#top",
    f"https://h/x?token={S}&page=2",
    f"https://h/cb#access_token={S}&state=1",
    f"https://maps/api?key={S}",
    f"https://acc.blob.core.windows.net/c/b?sv=2022-11-02&sr=b&sig={S}%2Fa%3D",
    f"SharedAccessSignature sr=h&sig={S}%3D&se=1",
    f"https://b.s3.amazonaws.com/k?X-Amz-Credential=A&X-Amz-Signature={S}&X-Amz-Security-Token={S}",
    f"https://storage.googleapis.com/b/o?X-Goog-Signature={S}",
    f"https://hooks.slack.com/services/T0/B0/{S}",
    f"jdbc:postgresql://h/db?user=u&password={S}&ssl=true",
    f"jdbc:oracle:thin:scott/{S}@//h:1521/x",
    f"mssql+pyodbc:///?odbc_connect=DRIVER%3DODBC%3BUID%3Du%3BPWD%3D{S}%3BDATABASE%3Dx",
    f"mssql+pyodbc:///?odbc_connect=PWD%3D{S}",
    f"https://h/login?next=postgresql%3A%2F%2Fml%3A{S}%40db%2Fx",
    # connection strings
    f"redis:6379,password={S},ssl=True",
    f"host=db user=ml password={S} dbname=x",
    f"host=db password='{S} {S}' dbname=x",
    f"host=db sslpassword={S}",
    f"Server=h;Uid=u;Pwd={S};Encrypt=yes",
    f"Server=h;User Id=u;Password={S}",
    f"DefaultEndpointsProtocol=https;AccountName=a;AccountKey={S}+/==;EndpointSuffix=core.windows.net",
    f"Endpoint=sb://h/;SharedAccessKeyName=n;SharedAccessKey={S}=",
    f"sasl.password = {S}",
    f'org.apache.kafka.PlainLoginModule required username="u" password="{S}";',
    f"password={S},{S};{S}",
    f"password={S}'{S}",
    f"Driver=x;UID=u;PWD={{a {S};b}};Server=h",
    f"ml:{S}@tcp(127.0.0.1:3306)/db",
    # variables, options and settings
    f"spark.hadoop.fs.s3a.secret.key={S}",
    f"fs.azure.account.key.acct.dfs.core.windows.net={S}=",
    f"mysqldump -u ml -p{S} db",
    f"AWS_SECRET_ACCESS_KEY={S}",
    f"export AWS_SESSION_TOKEN={S}",
    f"PGPASSWORD={S} psql -h db",
    f"MLFLOW_TRACKING_PASSWORD: {S}",
    f"secret_access_key = {S}",
    f"mlflow server --token {S} --port 5000",
    f"psql --password={S}",
    f"curl -u ml:{S} http://h",
    f"machine h login u password {S}",
    f"//registry.npmjs.org/:_authToken={S}",
    f"ALTER USER u WITH PASSWORD '{S}'",
    f"CREATE USER u IDENTIFIED BY '{S}'",
    f"password: {S}",
    f"wrong password: {S} for user ml",
    # headers
    f"Authorization: Bearer {S}",
    f"authorization: token {S}",
    f'curl -H "Authorization: Basic {S}==" h',
    f"sent Bearer {S}.{S} to h",
    f"x-api-key: {S}",
    f"Ocp-Apim-Subscription-Key: {S}",
    f"Cookie: session={S}; other={S}",
    f"{{'Authorization': 'Bearer {S}'}}",
    # Python and JSON
    f'{{"secret_access_key": "{S}", "region": "eu"}}',
    f'{{"a": "{{\\"password\\": \\"{S}\\"}}"}}',
    f"{{'password': b'{S}'}}",
    f"connect(user='u', password='{S}', port=1)",
    f"Settings(token=SecretStr('{S}'))",
    f'{{"password": "a\\"{S}"}}',
    f"os.environ['DB_PASSWORD'] = '{S}'",
    f'{{"client_secret":"{S}","x":"y@z.com"}}',
    # names with a suffix, in other words, and settings in columns
    f"DB_PASSWORD_PROD={S}",
    f"TOKEN_2: {S}",
    f"passwords={S}",
    f"pw={S}",
    f"Passwort: {S}",
    f"AZURE_STORAGE_KEY={S}",
    f"FERNET_KEY={S}",
    f"password            = {S}",
    f"password: |\n  {S}",
    f"host=db password=ab&{S} dbname=x",
    f"password=${S}",
    # a name that is a value itself
    f"{{'name': 'DB_PASSWORD', 'value': '{S}'}}",
    f'{{"name":"DB_PASSWORD","value":"{S}"}}',
    f"- name: DB_PASSWORD\n  value: {S}",
    f"('password', '{S}')",
    f"Command '['mysql', '--password', '{S}']' returned 1",
    f"['curl', '-u', 'ml:{S}']",
    f"<password>{S}</password>",
    f"<name>fs.s3a.secret.key</name><value>{S}</value>",
    f'{{"passwords": ["aaa", "{S}"]}}',
    # code
    f'password: str = "{S}"',
    f'password := "{S}"',
    f"password = '''{S}'''",
    f"password: 'it''s {S}'",
    f"auth=('ml', '{S}')",
    f"HTTPBasicAuth('ml', '{S}')",
    f'Authorization: OAuth oauth_token="{S}", oauth_signature="{S}"',
    f'"http:\\/\\/u:{S}@h\\/x"',
    f"postgresql%3a%2f%2fml%3a{S}%40db%2fx",
    f"odbc_connect%3DPWD%253D{S}",
    f"sshpass -p {S} ssh h",
    # keys and tokens by themselves
    KEY,
    KEY[:60],
    KEY.replace("\n", "\\n"),
    f"ghp_{S * 6}",
    f"eyJhbGciOiJI.eyJzdWIi{S}.{S}",
    f"sk-proj-{S * 5}",
    f"glpat-{S * 4}",
]
HARMLESS = [
    "d41d8cd98f00b204e9800998ecf8427e",
    "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "run 3f2c8a1be9d04f7c8a1be9d04f7c8a1b of 2026-01-02T03:04:05+00:00",
    "dvc:dataset:raw/flights.csv@9f2c",
    "mlflow:model_version:delay/3",
    "dvc:dataset:token.csv@9f2c",
    "tokenizer=bert-base, max_tokens=512, num_tokens: 7",
    "pad_token=[PAD] eos_token=</s> next_page_token=x2",
    "password_reset_rate=0.3, password_resets: 4, has_password: bool",
    "a@b.com",
    "mail ops@example.com or see http://h/docs",
    "git@github.com:o/r.git",
    "ssh://git@github.com/o/r.git",
    "git+https://github.com/o/r.git@v1.2.3",
    "https://h/x?page=2&sort=asc#top",
    "http://mlflow:5000/delay@champion",
    "http://[::1]:5000/delay@champion",
    "s3://bucket@v1/x, s3://bucket/year=2013/month=07",
    "abfss://container@account.dfs.core.windows.net/x",
    "sqlite:////tmp/a@b/mlflow.db",
    "primary_key=id, sort_key=age; partition_key: 2024-01-01",
    "key: a, signature: (x: long) -> y, signature=ModelSignature",
    "asset_key=churn/training_set",
    "passengers: 3, compass=N, bypass=1, passed: 12",
    "author=Ann, secretary: Bob, tokenization: done",
    "Wrong password: check it, or set MLFLOW_TRACKING_PASSWORD and MLFLOW_TRACKING_TOKEN.",
    "It needs credentials: set MLFLOW_TRACKING_USERNAME",
    "use basic authentication or a bearer token here",
    "password=env:DB_PASSWORD token=${TOKEN} secret=None",
    "Unexpected token '<' at line 3",
    "def login(user: str, password: str) -> None",
    "C:\\data\\x.csv: 12 rows",
    "10:32:11 INFO stage train: 0.91, pass: 12, fail: 3",
    "s3://bucket/key=3/token=abc/part.parquet, raw/secret=x/part.csv@9f2c",
    "columns: token, secret, pass; error: unknown key: token",
    'secret "db-access" not found in namespace "ml"',
    "GOOGLE_APPLICATION_CREDENTIALS=/srv/gcp.json",
    "feature views: driver_stats:conv_rate, driver_stats:acc_rate",
    "password=***, https://***@h, Authorization: ***",
    "['token', 'age', 'secret', 'day'] and (token, age)",
    "List<Token> tokens, if password > 3 or a>b, passed: 7, value: 3",
    "token=$DB_TOKEN",
]


@pytest.fixture(autouse=True)
def _no_values(monkeypatch):
    monkeypatch.setattr(secrets, "_values", ())
    monkeypatch.setattr(credentials, "_environment", {})


@pytest.mark.parametrize("text", FORMS)
def test_no_form_of_a_credential_is_left(text):
    masked = mask_credentials(text)
    assert S not in masked and "***" in masked
    assert mask_credentials(masked) == masked


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_looks_like_a_credential_is_left_as_it_is(text):
    assert mask_credentials(text) == text


PIECES = [*FORMS, *HARMLESS, *"\"'\\ @:/=&?;,#%-_\n\t*", "password", "token=", "://", "%3D", "***", "Bearer ", "(", S]


@given(st.lists(st.sampled_from(PIECES), max_size=6).map("".join) | st.text(max_size=40))
@settings(max_examples=200, deadline=None)
def test_masking_twice_is_masking_once(text):
    masked = mask_credentials(text)
    assert mask_credentials(masked) == masked


# Each begins something again and again, and never ends it.
HOSTILE = [
    "a", "://", "://a:", "://a:b@", "password", "password=", "token=\"", "password: '\\", "\\\"",
    "-----BEGIN PRIVATE KEY-----", "-----BEGIN PRIVATE KEY", "Bearer ", "login a password ", "%3A%2F%2F",
    "%3Aa", "-", "--password ", "?key=", ";,",
    "'a", "eyJ", "eyJaaaaaaaaa.", "ghp_", "sk-", " -u ", "oracle:thin:", "@", "a.", "a.a@", "[", " ", "authorization:",
    "SecretStr(", "password=a,a ", "identified by ", "://a:b@c password=x ",
    "'password', ", "('password',", "<password>", "password value=", "auth('", "sshpass -p ", "password = [", "'-u', '",
    "password    ", "password: |\n ", "password, \n",
    "PWD={", "mysql -p", "mysql x", "u:a@tcp", "account.key.",
]  # fmt: skip


def _seconds(text: str) -> float:
    """CPU time of this thread, the least of three."""
    times = []
    for _ in range(3):
        start = time.thread_time()
        mask_credentials(text)
        times.append(time.thread_time() - start)
    return min(times)


@pytest.mark.parametrize(
    "piece", [pytest.param(piece, marks=[pytest.mark.thorough] * (i not in (3, 5))) for i, piece in enumerate(HOSTILE)]
)
def test_the_time_grows_with_the_length_of_a_hostile_text_and_no_faster(piece):
    small, large = (piece * (size // len(piece)) for size in (25_000, 400_000))
    # Sixteen times the text: a mask with a quadratic part would take up to 256 times as long.
    assert _seconds(large) < 64 * max(_seconds(small), 0.001)


def test_a_megabyte_of_hostile_text_is_masked_to_its_end():
    text = mask_credentials(f"{'://a:b@c password=' * 60_000} {S}:// token={S}")
    assert S not in text


# --- records, and values


def test_mappings_and_ids_of_records_are_masked():
    run = TrainingRun(
        tool="mlflow",
        run_id="3f2c",
        tracking_uri=f"http://u:{S}@mlflow:5000",
        upstream=(Ref("x", "table", f"postgresql://u:{S}@db/t@5"),),
        tool_facts={"tags": {"db_password": S, "url": [f"redis:6379,password={S}"], "max_tokens": 5}},
    )
    assert S not in run.to_json() + repr(run) + str(run.to_metadata()) and run.tool_facts["tags"]["max_tokens"] == 5
    assert Record.from_json(run.to_json()) == run


def test_a_value_is_masked_by_its_name_in_any_mapping():
    settings = {"store": {"password": S, "kind": "redis"}, "api-key": [S], "token": {"env": "TOKEN"}, "has_token": True}
    masked = {"store": {"password": "***", "kind": "redis"}, "api-key": ["***"], "token": {"env": "TOKEN"}}
    assert masked_strings(settings) == {**masked, "has_token": True}
    assert masked_strings({"name": "DB_PASSWORD", "value": S}) == {"name": "DB_PASSWORD", "value": "***"}
    assert masked_strings({f"postgresql://u:{S}@db": 5}) == {"postgresql://***@db": 5}
    columns = {"reset_token": "String", "raw/token": "9f2c", "password": "int64"}  # types, and hashes by path
    assert masked_strings(columns) == columns


def test_a_credential_that_was_used_is_masked_by_its_value():
    remember_credentials({"url": f"postgresql://ml:{S}%2F{S}@db/x", "store": [{"account_key": 'Ab"9/d+f=='}]})
    texts = [f"for user ml: {S}/{S} is refused", f"{S}%2F{S}", 'Ab"9/d+f==', "Ab%229%2Fd%2Bf%3D%3D", '"Ab\\"9/d+f=="']
    assert not any(S in mask_credentials(text) or "d+f" in mask_credentials(text) for text in texts)
    assert mask_credentials(texts[3]) == "***"
    # As a path, as SQLAlchemy and as forms spell it.
    spelled = ["Ab%229/d%2Bf%3D%3D", "Ab%229%2Fd+f%3D%3D", "Ab&quot;9/d+f=="]
    assert [mask_credentials(text) for text in spelled] == ["***"] * 3
    remember_credentials(f"Authorization: Bearer {S}.jwt")
    assert mask_credentials(f"refused: {S}.jwt!") == "refused: ***!"
    # The value is gone from records, too.
    assert S not in Ref("x", "thing", f"a {S}/{S}").id


def test_words_that_are_credentials_by_chance_do_not_blank_all_text():
    settings = ["postgresql://mlflow:mlflow@db/mlflow", "https://localhost:minioadmin@h", "redis://:12345@h"]
    remember_credentials([*settings, {"token": "/run/secrets/token", "password": "Postgres"}])
    text = "mlflow on localhost, 12345 rows, minioadmin, Postgres, /run/secrets/token"
    assert mask_credentials(text) == text


def _first_words(text: str) -> str:
    return mask_credentials(f"The tool says: {text}, and ends.")


def test_what_a_resource_reads_from_the_environment_is_masked_by_its_value(monkeypatch, tmp_path):
    values = {"URI": f"postgresql://ml:{S}1@db/x", "REMOTE": f"https://u:{S}2@h/r", "OPTION": f"{S}3", "REGION": "eu-5"}
    for name, value in values.items():
        monkeypatch.setenv(f"TEXT_{name}", value)

    @dg.asset
    def uses(mlflow: MlflowResource, dvc: DvcResource) -> None:
        in_memory(dvc.remote_config)
        raise dg.Failure(_first_words(f"{S}1 {S}2 {S}3 eu-5"))

    options = {"custom": dg.EnvVar("TEXT_OPTION"), "region": dg.EnvVar("TEXT_REGION")}
    resources = {
        "mlflow": MlflowResource(tracking_uri=dg.EnvVar("TEXT_URI")),
        "dvc": DvcResource(repo=str(tmp_path), remote_url=dg.EnvVar("TEXT_REMOTE"), remote_config=options),
    }
    result = dg.materialize([uses], resources=resources, raise_on_error=False)
    [failure] = [event for event in result.all_events if event.is_step_failure]
    assert S not in str(failure) and "*** *** *** eu-5" in str(failure)


def test_variables_with_the_names_of_credentials_are_masked_by_their_value(monkeypatch):
    monkeypatch.setenv("WAREHOUSE_PASSWORD", f"{S}warehouse")
    monkeypatch.setenv("QUEUE_URL", f"amqp://u:{S}queue@mq")
    monkeypatch.setenv("AUTH_TOKEN_FILE", "/run/token")
    text = _first_words(f"{S}warehouse {S}queue /run/token")
    assert text == "The tool says: *** *** /run/token, and ends."


def test_a_variable_that_is_set_later_is_masked_by_its_value_too(monkeypatch):
    assert _first_words(f"{S}late") == f"The tool says: {S}late, and ends."
    monkeypatch.setenv("LATE_PASSWORD", f"{S}late")
    assert _first_words(f"{S}late") == "The tool says: ***, and ends."
    monkeypatch.setenv("LATE_PASSWORD", f"{S}later")  # the same variables, another value
    assert Ref("x", "thing", f"a {S}later").id == "a ***"


class Warehouse(dg.ConfigurableResource):
    """A user's own resource, whose fields and variables have names that say nothing."""

    where: str
    access: str


def test_what_any_resource_reads_from_the_environment_is_masked_if_it_looks_generated(monkeypatch):
    key = "wJalrXUtnFEMI0K7MDENGbPxRfiCY"
    ordinary = ["eu-west-1", "true", "5432", "acme-models-2024", "TrainingPipelineV2East", "worker-7d9f8b6c5-x2x4z"]
    ordinary += ["9f86d081884c7d659a2feaa0c55ad015", "3F2C8A1B-E9D0-4F7C-8A1B-E9D04F7C8A1B", "s3://Acme-Models2/Run1/x"]
    for number, value in enumerate(ordinary):
        monkeypatch.setenv(f"ORDINARY_{number}", value)
    monkeypatch.setenv("WAREHOUSE_ACCESS", key)

    @dg.asset
    def rows(warehouse: Warehouse) -> None:
        raise DagsterMlopsError(f"{warehouse.where}: {warehouse.access} of {' '.join(ordinary)}")

    warehouse = Warehouse(where=dg.EnvVar("ORDINARY_0"), access=dg.EnvVar("WAREHOUSE_ACCESS"))
    result = dg.materialize([rows], resources={"warehouse": warehouse}, raise_on_error=False)
    [failure] = [event for event in result.all_events if event.is_step_failure]
    assert key not in str(failure) and f"eu-west-1: *** of {' '.join(ordinary)}" in str(failure)


def test_the_working_directory_of_a_shell_is_not_a_password(monkeypatch):
    monkeypatch.setenv("PWD", "/Users/Ann/Project")
    monkeypatch.setenv("OLDPWD", "/Users/Ann/Other")
    assert (
        mask_credentials("/Users/Ann/Project/x.csv of /Users/Ann/Other")
        == "/Users/Ann/Project/x.csv of /Users/Ann/Other"
    )


def test_every_error_of_ours_is_masked_as_it_is_made():
    remember_credentials({"password": f"{S}error"})
    texts = [
        str(error(f"the tool says {S}error, and password={S}")) for error in (DagsterMlopsError, MissingExtraError)
    ]
    assert texts == ["the tool says ***, and password=***"] * 2
