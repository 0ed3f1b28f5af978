"""Look for known vulnerabilities in the installed packages, where the index tells of them: `python scripts/audit.py`.

pip-audit asks PyPI, or with --service osv the OSV database. An index that cannot be reached, or that mirrors packages
without their advisories, is said and is no failure: nothing is known then, not even that all is well.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.config import option, parse_options
from utils.errors import RunError, run_command, warn

PATIENCE = 300  # seconds for all packages
TIMEOUT = 15  # seconds for one answer


@dataclass(frozen=True)
class AuditOptions:
    """Whom to ask."""

    service: str = option("pypi", "who knows of vulnerabilities", choices=("pypi", "osv"))
    strict: bool = option(False, "fail for a vulnerability that a newer version mends")


def main(argv: list[str] | None = None) -> int:
    """Run the audit and print the result."""
    options = parse_options(AuditOptions, argv, description=__doc__ or "", prog="audit.py")
    packages = ask(options.service)
    if packages is None:
        return 0
    known = [package for package in packages if "skip_reason" not in package]
    found = [(package, each) for package in known for each in package["vulns"]]
    for package, each in found:
        mended = ", ".join(each["fix_versions"]) or "no version yet"
        warn(f"{package['name']} {package['version']}", f"has {each['id']}", f"mended in {mended}")
    print(
        f"audit: {len(known)} of {len(packages)} packages are known to {options.service}, {len(found)} vulnerabilities"
    )
    if not known:
        warn("audit", "this index has no advisories: nothing is known of any package", "run it where pypi.org answers")
    mendable = sorted({package["name"] for package, each in found if each["fix_versions"]})
    if mendable and options.strict:
        raise RunError(
            "audit", f"vulnerable and mended elsewhere: {', '.join(mendable)}", "raise these in requirements"
        )
    return 0


def ask(service: str) -> list[dict[str, Any]] | None:
    """pip-audit's rows, one a package; None, with a warning, where it cannot tell."""
    if importlib.util.find_spec("pip_audit") is None:
        warn("audit", "pip-audit is not installed: nothing was looked up", "run: pip install pip-audit")
        return None
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off"]
    command += ["--timeout", str(TIMEOUT), "--vulnerability-service", service]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        return json.loads(done.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        reason = f"no answer within {PATIENCE} s"
    except (ValueError, KeyError, TypeError):
        reason = (done.stderr.strip().splitlines() or ["no answer"])[-1][:160]
    warn("audit", f"{service} cannot be asked ({reason}): nothing was looked up", "run it where the network allows")
    return None


if __name__ == "__main__":
    run_command(main)
