"""`symoe doctor`: print what is here, whether each expert fits, and what to do about it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from symoe_ray.findings import Finding

OK, MISSING = 0, 4


def doctor(findings: Sequence[Finding], *, as_json: bool) -> int:
    """Print the findings; exit code 0 if all are fine, 4 otherwise."""
    fine = all(f.fine for f in findings)
    if as_json:
        print(json.dumps({"fine": fine, "findings": [asdict(f) for f in findings]}))
    else:
        width = max(len(f.what) for f in findings)
        for finding in findings:
            print(f"{'ok  ' if finding.fine else 'FAIL'} {finding.what:<{width}}  {finding.value}")
            if finding.advice:
                print(f"     {'':<{width}}  -> {finding.advice}")
    return OK if fine else MISSING
