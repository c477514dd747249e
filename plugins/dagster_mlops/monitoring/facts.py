"""Names of metadata of windows and incidents, which several parts of this folder write and read."""

from typing import Literal

from dagster_mlops.core.check_states import reason_key, state_key

State = Literal["ok", "suspected", "detected", "recovered", "undecided"]
TOOL = "monitoring"
STATE, REASON = state_key(TOOL), reason_key(TOOL)
WINDOW_START = f"{TOOL}/window_start"
WINDOW_END = f"{TOOL}/window_end"
ROWS = f"{TOOL}/rows"
LAG = f"{TOOL}/lag"
LATE_ROWS = f"{TOOL}/late_rows"
SCORE = f"{TOOL}/score"
SCORES = f"{TOOL}/scores"
THRESHOLD = f"{TOOL}/threshold"
COLUMNS = f"{TOOL}/columns"
HARM = f"{TOOL}/harm"
REPEATED = f"{TOOL}/repeated"
INCIDENT = f"{TOOL}/incident"
INCIDENT_COLUMNS = f"{TOOL}/incident_columns"
