"""The workflows: what they do, and what somebody hostile could make of them."""

import re

import pytest
import yaml
from conftest import ROOT

FOLDER = ROOT / ".github" / "workflows"
FILES = sorted(FOLDER.glob("*.yml"))
every_workflow = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def load(path):
    """The workflow as a dictionary. YAML reads the key `on` as true."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def workflow(name):
    return load(FOLDER / f"{name}.yml")


def steps_of(flow):
    return [step for job in flow["jobs"].values() for step in job["steps"]]


def commands(job):
    return "\n".join(step.get("run", "") for step in job["steps"])


def test_there_are_three_workflows():
    assert [path.stem for path in FILES] == ["colab", "publish", "test"]


@every_workflow
def test_actions_are_pinned_by_commit_and_say_their_version(path):
    uses = re.findall(r"\buses: *(.*)", path.read_text(encoding="utf-8"))
    assert len(uses) == sum("uses" in step for step in steps_of(load(path))) > 0
    for action in uses:
        assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action)


def test_an_action_has_one_version_in_all_workflows():
    text = "".join(path.read_text(encoding="utf-8") for path in FILES)
    pins = set(re.findall(r"uses: *(.*)", text))
    names = [pin.split("@")[0] for pin in pins]
    assert len(names) == len(set(names)), sorted(pins)


@every_workflow
def test_permissions_are_given_to_jobs_alone(path):
    flow = load(path)
    assert flow["permissions"] == {}
    for name, job in flow["jobs"].items():
        assert isinstance(job["permissions"], dict), name


@every_workflow
def test_no_step_finds_the_token_in_the_checkout(path):
    checkouts = [
        step for step in steps_of(load(path))
        if step.get("uses", "").startswith("actions/checkout@")
    ]
    assert checkouts
    for step in checkouts:
        assert step["with"]["persist-credentials"] is False


@every_workflow
def test_no_expression_is_pasted_into_a_command(path):
    for step in steps_of(load(path)):
        assert "${{" not in step.get("run", ""), step


@every_workflow
def test_jobs_end(path):
    for name, job in load(path)["jobs"].items():
        assert job["timeout-minutes"] <= 150, name


def test_pull_requests_get_no_right_to_write():
    for path in FILES:
        flow = load(path)
        assert "pull_request_target" not in flow[True]
        if "pull_request" in flow[True]:
            rights = [job["permissions"] for job in flow["jobs"].values()]
            assert rights == [{"contents": "read"}]


def test_checks_are_those_of_a_desk():
    assert ".ci/run" in commands(workflow("test")["jobs"]["test"])


def test_what_builds_may_not_publish_and_what_publishes_runs_nothing():
    build, deploy = workflow("publish")["jobs"].values()
    assert build["permissions"] == {"contents": "read", "pages": "read"}
    assert "make book" in commands(build) and "tools/links.py" in commands(build)
    assert not any("cache" in step.get("with", {}) for step in build["steps"])

    assert deploy["permissions"] == {"pages": "write", "id-token": "write"}
    assert deploy["needs"] == "build"
    (step,) = deploy["steps"]
    assert step["uses"].startswith("actions/deploy-pages@")


def test_weekly_run_takes_all_notebooks_and_the_image_gets_no_token():
    flow = workflow("colab")
    assert flow[True]["schedule"]
    job = flow["jobs"]["notebooks"]
    assert job["permissions"] == {"contents": "read"}
    assert "tools/colab.py" in commands(job) and "chapters/*.ipynb" in commands(job)
    assert "SEGBOOK_PROFILE=smoke" in commands(job) and ":/book:ro" in commands(job)
    assert "token" not in str(job) and "secrets" not in str(job)


def test_weekly_run_tells_of_failures():
    notebooks, tell = workflow("colab")["jobs"].values()
    (report,) = [step for step in notebooks["steps"] if step.get("id") == "report"]
    assert report["if"] == "failure()" and "tools/report.py" in report["run"]
    assert tell["if"] == "failure()" and tell["needs"] == "notebooks"
    assert tell["permissions"] == {"issues": "write"}
    assert "gh issue create" in commands(tell)
    assert not any("uses" in step for step in tell["steps"])
