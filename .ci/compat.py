"""``make compat``: try the package in the environments of ``compat.json``, one after another, and write the table.

Each environment is made anew in a temporary folder, takes the checks of ``tests/compat/checks.py``, and is removed. An
interpreter that this machine lacks is looked for among pyenv's; where there is none, the packages are resolved alone
and the row says "not run". The workflow of the same name is written from the same table (``--workflow``).
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
ENVIRONMENTS: list[dict[str, Any]] = json.loads((HERE / "compat.json").read_text())
TOOLS = ["pytest", "pytest-timeout", "hypothesis", "entmax", "safetensors", "packaging"]
LAYERED = "timm or transformers or command or probe"
"""Of the checks, those that are run again when timm or transformers is exchanged in an environment."""
ERROR = re.compile(r"^ *(?:\[rank\d+\]: )?([\w.]*(?:Error|Exception|Interrupt): \S.*)$", re.MULTILINE)
"""The line by which Python ends a process, torchrun's mark before it left out."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="environments to try; all of them by default")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "compat", help="results, one file an environment")
    parser.add_argument("--table", action="store_true", help="print the table of the results that are there")
    parser.add_argument("--workflow", action="store_true", help="print the workflow file")
    args = parser.parse_args()
    if args.workflow:
        print(workflow(), end="")
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    known = [environment["name"] for environment in ENVIRONMENTS]
    unknown = sorted(set(args.names) - set(known))
    if unknown:
        parser.error(f"{unknown} are not in {HERE / 'compat.json'}, which has {known}")
    for environment in [] if args.table else ENVIRONMENTS:
        if not args.names or environment["name"] in args.names:
            run(environment, args.out)
    results = [
        json.loads(file.read_text()) for file in (args.out / f"{slug(name)}.json" for name in known) if file.exists()
    ]
    print("\n".join(table(results)))
    outcomes = [outcome for result in results for row in result["rows"] for outcome in row["checks"].values()]
    return int(any(outcome.startswith("failed") for outcome in outcomes))


def slug(name: str) -> str:
    return "".join(c if c.isalnum() or c == "." else "-" for c in name.lower())


def interpreter(version: str) -> str | None:
    """An interpreter of ``version`` (``3.12``): on the path, or one of pyenv's; None without."""
    named = os.environ.get(f"PYTHON{version.replace('.', '')}") or f"python{version}"
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for candidate in (named, *sorted(map(str, pyenv.glob(f"versions/{version}.*/bin/python")), reverse=True)):
        try:
            told = subprocess.run(
                [candidate, "-c", "import sys, venv, ensurepip; print(*sys.version_info[:2], sep='.')"],
                capture_output=True,
                text=True,
            )
        except FileNotFoundError:
            continue
        if told.returncode == 0 and told.stdout.strip() == version:
            return candidate
    return None


def run(environment: dict[str, Any], out: Path) -> None:
    """Try one environment and write what came of it."""
    python = interpreter(environment["python"])
    told: dict[str, Any] = {
        **environment,
        "date": datetime.date.today().isoformat(),
        "machine": platform.machine(),
        "rows": [],
    }
    if python is None:
        told["resolved"] = resolve(environment)
    else:
        with tempfile.TemporaryDirectory(dir=out, prefix="environment-") as folder:
            bin_ = Path(folder) / "bin"
            subprocess.run([python, "-m", "venv", folder], check=True)
            install(bin_, *environment["pins"], *environment.get("also", []), *TOOLS)
            extras = f"[{','.join(environment['extras'])}]" if environment.get("extras") else ""
            install(bin_, *environment["pins"], f"{ROOT}{extras}")
            for package in environment.get("without_dependencies", []):
                install(bin_, "--no-deps", package)
            subprocess.run([ROOT / ".ci/load-opencv", bin_ / "python"], check=True)
            told["rows"].append(checked(bin_, out, environment["pins"], None))
            for pins in environment["then"]:
                install(bin_, *pins, *(pin for pin in environment["pins"] if pin.startswith(("torch", "numpy"))))
                told["rows"].append(checked(bin_, out, pins, LAYERED))
    (out / f"{slug(environment['name'])}.json").write_text(json.dumps(told, indent=1))


def install(bin_: Path, *words: str) -> None:
    """By uv where it is installed, which is several times faster, or else by the environment's own pip."""
    python, uv = str(bin_ / "python"), shutil.which("uv")
    by_pip = [python, "-m", "pip", "install", "--no-cache-dir", "--disable-pip-version-check"]
    command = [uv, "pip", "install", "--python", python, "--no-cache"] if uv else by_pip
    subprocess.run([*command, "--quiet", *words], check=True)


def resolve(environment: dict[str, Any]) -> str:
    """Whether wheels of all packages can be found for an interpreter that is not here; nothing is kept."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["--python-version", environment["python"], "--only-binary=:all:", "--dry-run", "--target", folder]
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            *words,
            *environment["pins"],
            *environment.get("also", []),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
    return "resolves" if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


def checked(bin_: Path, out: Path, pins: list[str], which: str | None) -> dict[str, Any]:
    """Outcome of every check: ``passed``, ``skipped: REASON`` or ``failed: ERROR``."""
    report = out / "report.xml"
    words = [
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--tb=short",
        f"--junitxml={report}",
        *(["-k", which] if which else []),
    ]
    # From the checkout's folder the checkout would be what is imported, not what was installed.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    command = [
        str(bin_ / "python"),
        *words,
        "--rootdir",
        str(ROOT),
        "-c",
        str(ROOT / "pyproject.toml"),
        str(ROOT / "tests/compat/checks.py"),
    ]
    subprocess.run(command, cwd=out, env=environment, check=False)
    versions = subprocess.run(
        [str(bin_ / "attn-plugins"), "env"], cwd=out, env=environment, capture_output=True, text=True
    )
    checks: dict[str, str] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = case.attrib["name"].partition("[")[0].removeprefix("test_")
        outcome = next((said for said in map(outcome_of, case) if said), "passed")
        if not checks.get(name, "").startswith("failed"):
            checks[name] = outcome
    report.unlink()
    return {"pins": pins, "checks": checks, "versions": versions.stdout.splitlines()}


def outcome_of(child: ElementTree.Element) -> str:
    """``skipped: REASON`` or ``failed: ERROR`` of what junit's XML holds in a test case; empty for its output.

    Where the output of a process is in the message, the error that ended it is the last that is named with a reason;
    torchrun's own, below it, has none.
    """
    message = child.get("message", "").strip()
    if child.tag == "skipped":
        return f"skipped: {message}"
    if child.tag not in ("failure", "error"):
        return ""
    first, errors = message.partition("\n")[0], ERROR.findall(message)
    return f"failed: {errors[-1] if errors else first}"


def table(results: list[dict[str, Any]]) -> list[str]:
    """The README's table, in Markdown: a row a set of packages, how many checks passed and why the rest did not."""
    checks = dict.fromkeys(name for result in results for row in result["rows"] for name in row["checks"])
    lines = [
        f"Checks: {', '.join(checks)}.",
        "",
        "| environment | passed | skipped or failed, and why |",
        "|---|---|---|",
    ]
    for result in results:
        python = f"Python {result['python']}"
        if not result["rows"]:
            lines.append(f"| {', '.join([python, *result['pins']])} | not run | {result['resolved']} |")
        for index, row in enumerate(result["rows"]):
            words = [f"… then {row['pins'][0]}", *row["pins"][1:]] if index else [python, *row["pins"]]
            rest = [f"{name}: {outcome}" for name, outcome in row["checks"].items() if outcome != "passed"]
            passed = f"{len(row['checks']) - len(rest)} of {len(row['checks'])}"
            lines.append(f"| {', '.join(words)} | {passed} | {'; '.join(rest)} |")
    dates = sorted({result["date"] for result in results})
    return [line.replace("==", " ").replace("_", " ") for line in lines] + ["", f"Run on {', '.join(dates)}."]


def workflow() -> str:
    """``.github/workflows/compat.yml``: one job an environment."""
    lines = [
        "# Written by `python .ci/compat.py --workflow` from .ci/compat.json.",
        "name: compat",
        "on:",
        "  schedule:",
        '    - cron: "41 3 * * 1"',
        "  workflow_dispatch:",
        "jobs:",
        "  compat:",
        "    runs-on: ubuntu-latest",
        "    timeout-minutes: 30",
        "    strategy:",
        "      fail-fast: false",
        "      matrix:",
        "        include:",
    ]
    for environment in ENVIRONMENTS:
        lines += [
            f"          - name: {json.dumps(environment['name'])}",
            f"            python: {json.dumps(environment['python'])}",
        ]
    lines += [
        "    steps:",
        "      - uses: actions/checkout@v4",
        "      - uses: actions/setup-python@v5",
        "        with:",
        "          python-version: ${{ matrix.python }}",
        '      - run: python .ci/compat.py "${{ matrix.name }}"',
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
