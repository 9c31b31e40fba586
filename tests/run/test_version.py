"""One version, and results that say by which they were made."""

import re

import pytest
import yaml
from digits_steps import ROOT, STEPS, read_json

import cluster
import eval as eval_command
import export
import moco
import predict
import pretrained
import reproduce
from utils.files import write_json
from utils.run.version import VERSION, warn_if_newer
from workflows.trained_model import load_trained_model

STEP_COMMANDS = moco, pretrained, *(script for script, *_ in STEPS.values())
COMMANDS = cluster, eval_command, export, predict, reproduce, *STEP_COMMANDS


def test_pages_agree():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == VERSION
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == VERSION


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_every_command_tells_its_version(command, capsys):
    with pytest.raises(SystemExit, match="^0$"):
        command.main(["--version"])
    assert capsys.readouterr().out == f"scan-clustering {VERSION}\n"


@pytest.mark.parametrize(("made_by", "warned"), [(VERSION, 0), (None, 0), ("1.9.0", 0), ("2.0.0", 1)])
def test_results_of_other_versions(copied, caplog, made_by, warned):
    """They are used. Of a newer major version, one line tells."""
    warn_if_newer.cache_clear()
    for path in copied.glob("*/*/fingerprint.json"):
        content = read_json(path)
        assert content.pop("version") == VERSION
        write_json(content | ({"version": made_by} if made_by else {}), path)
    for step in ("", "scan", "selflabel"):
        assert load_trained_model(copied / "digits" / step).num_clusters == 10
    lines = [line for line in caplog.messages if "version" in line]
    assert len(lines) == warned
    assert all(f"{copied / 'digits'}: made by version 2.0.0" in line and VERSION in line for line in lines)
