"""Known vulnerabilities of what is installed: `make audit`.

    python tests/audit.py

pip-audit asks a database of advisories, the package index's or else OSV's. What is asked is the version without its
local part (`2.13.0` for `2.13.0+cpu`), which no database knows. A database that cannot be reached, or that knows
nothing of the package that is asked for first, is none: that passes, with one line that begins `not audited`. A known
vulnerability ends in exit 1 and a line each.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import NamedTuple

SERVICES = ("pypi", "osv")
ASKED_FIRST = "pip"
"""What every index and database of Python packages knows."""
PROBE_SECONDS, SECONDS = 8, 300
OWN = "sat-lens"


class Report(NamedTuple):
    """What a database says.

    Args:
        n_audited: packages that it knows.
        unknown: names of those that it does not.
        found: a line a vulnerability.
        why_not: why there is no answer; empty where there is one.
    """

    n_audited: int = 0
    unknown: tuple[str, ...] = ()
    found: tuple[str, ...] = ()
    why_not: str = ""


def installed() -> list[str]:
    """`name==version` of every package but our own, sorted."""
    names = {re.sub(r"[-_.]+", "-", d.metadata["Name"]).lower(): d.version.partition("+")[0] for d in distributions()}
    return sorted(f"{name}=={version}" for name, version in names.items() if name != OWN)


def read_report(code: int, output: str, errors: str) -> Report:
    """What pip-audit's exit code, its JSON and its last words mean; a report that says nothing of a package is none."""
    try:
        packages = json.loads(output)["dependencies"]
        known = [package for package in packages if "skip_reason" not in package]
        found = tuple(
            f"{package['name']} {package['version']}: {one['id']}, fixed in {', '.join(one['fix_versions']) or 'none'}"
            for package in known
            for one in package["vulns"]
        )
        unknown = tuple(package["name"] for package in packages if "skip_reason" in package)
    except (ValueError, KeyError, TypeError):
        last = next((line.strip() for line in reversed(errors.splitlines()) if line.strip()), "")
        return Report(why_not=last[:120] or f"pip-audit ends with {code} and says nothing")
    if not known:
        return Report(unknown=unknown, why_not="the database knows none of the packages")
    return Report(len(known), unknown, found)


def asked(service: str, packages: Sequence[str], seconds: float) -> Report:
    """What a database says of these packages; one that takes longer has not answered."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder, "packages.txt")
        wanted.write_text("\n".join(packages) + "\n", encoding="utf-8")
        flags = ["--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off", "--timeout", "5"]
        command = [sys.executable, "-m", "pip_audit", "-s", service, "-r", str(wanted), "--desc", "off", *flags]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, start_new_session=True, **pipes)
        try:
            output, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return Report(why_not=f"no answer in {seconds} s")
    return read_report(process.returncode, output, errors)


def audit(packages: Sequence[str]) -> Report:
    """What the first database that can be reached says; `why_not` names each that could not."""
    first = next((package for package in packages if package.startswith(f"{ASKED_FIRST}==")), packages[0])
    reasons = []
    for service in SERVICES:
        report = asked(service, [first], PROBE_SECONDS)
        if not report.why_not:
            report = asked(service, packages, SECONDS)
        if not report.why_not:
            return report
        reasons.append(f"{service}: {report.why_not}")
    return Report(why_not="; ".join(reasons))


def verdict(report: Report) -> tuple[int, str]:
    """Exit code and text."""
    if report.why_not:
        return 0, f"not audited: {report.why_not}"
    said = f"{len(report.found)} known vulnerabilities in {report.n_audited} packages"
    if report.unknown:
        said += f"; unknown to the database: {', '.join(report.unknown)}"
    return bool(report.found), "\n".join((*report.found, said))


def main() -> int:
    code, said = verdict(audit(installed()))
    sys.stdout.write(f"{said}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
