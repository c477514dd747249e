"""Rules in YAML are those of Python, and a wrong one is refused with its place and what is right."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import dagster as dg
import jsonschema
import pytest
import yaml
from dagster.components.testing import create_defs_folder_sandbox

from dagster_mlops.mlflow import PromotionComponent
from dagster_mlops.promotion import rule_fields
from dagster_mlops.promotion.rules.options import DESCRIPTION
from tests.support import known_warnings

pytestmark = [*known_warnings.DAGSTER_BETA]

PAGE = Path(__file__).parents[2].joinpath("docs", "promotion.md").read_text()
BASE = {"candidate": "model", "registered_model_name": "delay", "evaluation": "evaluation"}
RULE = """
import dagster as dg

class Even:
    name = "even version"

    def judge(self, case): ...

@dg.template_var
def even():
    return Even()
"""


def loaded(attributes: dict[str, Any], variables: str = "") -> dg.AssetsDefinition:
    """The promotion of a component with these attributes."""
    document = {"type": "dagster_mlops.mlflow.PromotionComponent", "attributes": attributes}
    if variables:
        document["template_vars_module"] = ".variables"
    with create_defs_folder_sandbox() as sandbox:
        path = sandbox.scaffold_component(component_cls=PromotionComponent, defs_yaml_contents=document)
        (path / "variables.py").write_text(variables)
        with sandbox.load_component_and_build_defs(defs_path=path) as (_, defs):
            [asset] = defs.assets or []
            assert isinstance(asset, dg.AssetsDefinition)
            return asset


def rules_of(asset: dg.AssetsDefinition) -> Any:
    """The rules of a promotion, from its function."""
    function: Any = asset.op.compute_fn.decorated_fn  # pyright: ignore[reportFunctionMemberAccess]
    return dict(zip(function.__code__.co_freevars, function.__closure__, strict=True))["all_rules"].cell_contents


def test_the_page_has_each_rule_in_python_and_in_yaml_and_both_are_the_same():
    page = PAGE[PAGE.index("## The rules") :]
    blocks = {kind: re.findall(rf"```{kind}\n(.*?)```", page, re.DOTALL) for kind in ("python", "yaml")}
    namespace: dict[str, Any] = {}
    exec(blocks["python"][0], namespace)
    in_yaml = loaded(yaml.safe_load(blocks["yaml"][0])["attributes"])
    assert rules_of(in_yaml) == rules_of(namespace["champion"])
    names = {type(rule).__name__ for rule in rules_of(in_yaml)}
    assert names == {rule.__name__ for rule in rule_fields.TYPES.values()}
    table = re.findall(r"^\| `(\w+)` \| `(\w+)`", PAGE, re.MULTILINE)
    assert dict(table) == {rule.__name__: name for name, rule in rule_fields.TYPES.items()}


def test_a_template_gives_a_rule_of_the_users_own():
    [rule] = rules_of(loaded({**BASE, "rules": ["{{ even }}"]}, RULE))
    assert rule.name == "even version"


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (
            {"type": "at_lest"},
            ["].0 at", "'at_lest' found using rule_type()", "expected tags: 'at_least'"],
        ),
        ({"metric": "auc", "limit": 0.7}, ["attributes.rules", ".0 at", "Input tag '' found using rule_type()"]),
        ({"type": "at_least", "metric": "auc"}, ["].0.at_least.limit", "Field required"]),
        ({"type": "at_least", "metric": "auc", "limit": 0.7, "most": 1}, ["].0.at_least.most", "Extra inputs"]),
        ({"type": "at_least", "metric": "auc", "limit": "high"}, ["'high'"]),
        ({"type": "at_least", "metric": "auc", "limit": float("nan")}, ["limit=nan is not a finite number"]),
        ({"type": "green_checks", "checks": ["a:b"], "max_age": {"hours": -1}}, ["max_age", "greater than or equal"]),
        ({"type": "improvement", "metric": "auc", "absolute": 1, "relative": 1}, ["give absolute or relative"]),
        ("at_least", ["'at_least' is a text. Write {type: at_least"]),
    ],
)
def test_a_wrong_rule_is_refused_when_definitions_load(rule, words):
    with pytest.raises(Exception) as caught:
        loaded({**BASE, "rules": [rule]})
    messages, error = [], caught.value
    while error:
        messages.append(str(error))
        error = error.__cause__
    assert [word for word in words if word not in "\n".join(messages)] == [], messages


def test_a_text_in_the_place_of_fields_is_refused_by_what_is_right_there():
    with pytest.raises(Exception) as caught:
        loaded({**BASE, "metric": "auc", "approval": "ann"})
    error, texts = caught.value, []
    while error:
        texts.append(str(error))
        error = error.__cause__
    assert "'ann' is a text. Write the fields: {people, approvers, valid_days, separate_duties}." in "\n".join(texts)


def test_the_schema_for_editors_knows_each_rule_and_accepts_the_page():
    schema = PromotionComponent.get_model_cls().model_json_schema()  # pyright: ignore[reportOptionalMemberAccess]
    document = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[0])["attributes"]
    validator = jsonschema.Draft202012Validator(schema)
    assert list(validator.iter_errors(document)) == []
    for rule in (
        {"type": "at_lest"},
        {"type": "at_least", "metric": "auc"},
        {"type": "better", "metric": "auc", "x": 1},
    ):
        assert list(validator.iter_errors({**document, "rules": [rule]}))
    assert not list(validator.iter_errors({**document, "rules": ["{{ even }}"]}))


@pytest.mark.parametrize("rule", rule_fields.TYPES.values(), ids=lambda rule: rule.__name__)
def test_each_option_of_a_rule_describes_itself(rule):
    assert [f.name for f in dataclasses.fields(rule) if not f.metadata.get(DESCRIPTION)] == []
