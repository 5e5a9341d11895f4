"""Known vulnerabilities of what is installed, by pip-audit. Exit code 1 if there are any.

Where the index does not offer the vulnerability service, or there is no network, that is said and the code is 0:
pip-audit itself reports "no known vulnerabilities" of packages that it could not look up.
"""

import json
import subprocess
import sys

command = [sys.executable, "-m", "pip_audit", "--format=json", "--progress-spinner=off", "--skip-editable"]
result = subprocess.run(command, capture_output=True, text=True, check=False)
try:
    packages = json.loads(result.stdout)["dependencies"]
except (ValueError, KeyError):
    print("audit: NOT DONE, the vulnerability service does not answer:", result.stderr.strip()[-300:])
    sys.exit(0)
looked_up = [package for package in packages if "vulns" in package]
found = [package for package in looked_up if package["vulns"]]
for package in found:
    for vulnerability in package["vulns"]:
        fixed = ", ".join(vulnerability["fix_versions"]) or "no version yet"
        print(f"audit: {package['name']} {package['version']}: {vulnerability['id']}, fixed in {fixed}")
if len(looked_up) < len(packages):
    missing = [package["name"] for package in packages if "vulns" not in package]
    print(
        f"audit: NOT DONE for {len(missing)} of {len(packages)} packages, which the service does not know:",
        *missing[:8],
    )
print(f"audit: {len(looked_up)} packages looked up, {len(found)} with known vulnerabilities")
sys.exit(bool(found))
