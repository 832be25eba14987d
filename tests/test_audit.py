import json
import re
import sys

import pytest

from tests import audit

PIP = {"name": "pip", "version": "23.2.1", "vulns": []}
OLD = {
    "name": "requests",
    "version": "2.19.0",
    "vulns": [
        {"id": "PYSEC-2018-28", "fix_versions": ["2.20.0"], "aliases": ["CVE-2018-18074"]},
        {"id": "PYSEC-0", "fix_versions": [], "aliases": []},
    ],
}
UNKNOWN = {"name": "mine", "skip_reason": "Dependency not found on PyPI and could not be audited: mine (1.0)"}
BROKEN = "Traceback (most recent call last):\n  File x\nConnectionError: no such host\n"


def said(*packages, code=0, errors=""):
    return audit.verdict(audit.read_report(code, json.dumps({"dependencies": packages, "fixes": []}), errors))


def test_no_vulnerability_passes_and_what_the_database_does_not_know_is_named():
    assert said(PIP) == (0, "0 known vulnerabilities in 1 packages")
    assert said(PIP, UNKNOWN) == (0, "0 known vulnerabilities in 1 packages; unknown to the database: mine")


def test_a_known_vulnerability_fails_with_a_line_each():
    code, text = said(PIP, OLD, UNKNOWN, code=1)
    assert code == 1 and text.splitlines() == [
        "requests 2.19.0: PYSEC-2018-28, fixed in 2.20.0",
        "requests 2.19.0: PYSEC-0, fixed in none",
        "2 known vulnerabilities in 2 packages; unknown to the database: mine",
    ]


@pytest.mark.parametrize(
    ("code", "output", "errors", "why"),
    [
        (1, "", BROKEN, "ConnectionError: no such host"),
        (1, "", "", "pip-audit ends with 1 and says nothing"),
        (0, '{"dependencies": []}', "", "the database knows none of the packages"),
        (0, json.dumps({"dependencies": [UNKNOWN, UNKNOWN]}), "", "the database knows none of the packages"),
        (0, '{"other": 1}', "x\n\n", "x"),
        (0, "[]", "", "pip-audit ends with 0 and says nothing"),
    ],
)
def test_no_answer_is_not_taken_for_no_vulnerability(code, output, errors, why):
    report = audit.read_report(code, output, errors)
    assert audit.verdict(report) == (0, f"not audited: {why}") and not report.found


def test_a_database_that_does_not_answer_is_left_for_the_next_one(monkeypatch):
    calls = []

    def asked(service, packages, seconds):
        calls.append((service, len(packages), seconds))
        return audit.Report(why_not="silent") if service == "pypi" else audit.Report(len(packages))

    monkeypatch.setattr(audit, "asked", asked)
    assert audit.audit(["a==1", "pip==2", "z==3"]) == audit.Report(3)
    assert calls == [("pypi", 1, audit.PROBE_SECONDS), ("osv", 1, audit.PROBE_SECONDS), ("osv", 3, audit.SECONDS)]
    monkeypatch.setattr(audit, "SERVICES", ("pypi",))
    assert audit.verdict(audit.audit(["a==1"])) == (0, "not audited: pypi: silent")
    assert len(audit.SERVICES) * audit.PROBE_SECONDS <= 20, "seconds that an audit takes without a network, at most"


def test_a_database_that_hangs_is_given_up(monkeypatch, tmp_path):
    hangs = tmp_path / "python"
    hangs.write_text(f"#!{sys.executable} -S\nimport time\ntime.sleep(60)\n")
    hangs.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(hangs))
    assert audit.asked("pypi", ["pip==1"], 0.5).why_not == "no answer in 0.5 s"


def test_what_is_installed_is_asked_for_without_what_only_this_machine_knows():
    packages = audit.installed()
    assert packages == sorted(packages) and all(re.fullmatch(r"[a-z0-9-]+==[^+\s]+", one) for one in packages)
    names = {one.partition("==")[0] for one in packages}
    assert {"torch", "transformer-lens", "pip-audit", "pip"} <= names and "sat-lens" not in names
