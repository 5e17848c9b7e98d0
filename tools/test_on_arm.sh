#!/bin/sh
# Builds the native kernels for 64-bit Arm and runs their tests under qemu, on a Debian machine of another architecture.
#
#     sudo apt install g++-aarch64-linux-gnu qemu-user cmake ninja-build
#     tools/test_on_arm.sh [arguments of pytest; left out, the tests of the kernels]
#
# Everything lies in build/arm: an Arm Python and its libraries from Debian's own packages (root), the packages that
# mixkv needs as Arm wheels (site), a Python that starts under qemu (venv), the extension (native) and mixkv as it would
# be installed (stage). No rights are needed and nothing is installed elsewhere; delete the folder to start anew.
# qemu computes right and slowly: the default takes an hour, and says nothing about speed.
set -eu
cd "$(dirname "$0")/.."
arm=$PWD/build/arm
mkdir -p "$arm"

for tool in aarch64-linux-gnu-g++ qemu-aarch64 cmake ninja apt-get dpkg; do
    command -v "$tool" >/dev/null || {
        echo "$tool is missing: sudo apt install g++-aarch64-linux-gnu qemu-user cmake ninja-build (Debian)" >&2
        exit 1
    }
done

if [ ! -e "$arm/root/.complete" ]; then
    apt=$arm/apt
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/parts" "$arm/root"
    : >"$apt/status"
    key=/usr/share/keyrings/debian-archive-keyring.gpg
    . /etc/os-release
    echo "deb [signed-by=$key] http://deb.debian.org/debian $VERSION_CODENAME main" >"$apt/sources.list"
    cat >"$apt/apt.conf" <<END
APT { Architecture "arm64"; Architectures { "arm64"; }; Install-Recommends "false"; };
Dir { State "$apt"; State::status "$apt/status"; Cache "$apt/cache"; };
Dir::Etc { sourcelist "$apt/sources.list"; sourceparts "$apt/parts"; main "$apt/none"; parts "$apt/parts"; };
END
    APT_CONFIG=$apt/apt.conf apt-get -q update
    APT_CONFIG=$apt/apt.conf apt-get -qy --download-only install python3 libpython3-dev libstdc++6
    for package in "$apt"/cache/archives/*.deb; do dpkg -x "$package" "$arm/root"; done
    touch "$arm/root/.complete"
fi
# The name with its version, as the one without is a link that qemu would follow into this machine.
python=$arm/root/usr/bin/$(readlink "$arm/root/usr/bin/python3")
version=${python##*python}

# A Python whose subprocesses start under qemu too: this file is what it takes itself for.
mkdir -p "$arm/venv/bin" "$arm/venv/lib/python$version" "$arm/site"
ln -sfn "$arm/site" "$arm/venv/lib/python$version/site-packages"
printf 'home = %s\ninclude-system-site-packages = false\n' "${python%/*}" >"$arm/venv/pyvenv.cfg"
printf '#!/bin/sh\nexec qemu-aarch64 -L "%s" -0 "$0" "%s" "$@"\n' "$arm/root" "$python" >"$arm/venv/bin/python"
chmod +x "$arm/venv/bin/python"

if [ ! -e "$arm/site/.complete" ]; then
    [ -x "$arm/host/bin/pip" ] || "${PYTHON:-python3}" -m venv "$arm/host"
    "$arm/host/bin/python" - "$version" "$arm/site" <<'END'
import subprocess, sys, tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())
wanted = project["project"]["dependencies"] + project["project"]["optional-dependencies"]["test"]
wanted += [r for r in project["build-system"]["requires"] if r.startswith("nanobind")]
platforms = [f"--platform=manylinux{tag}_aarch64" for tag in ("2014", "_2_17", "_2_28")]
command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", sys.argv[2]]
subprocess.run([*command, *platforms, "--python-version", sys.argv[1], "--only-binary=:all:", *wanted], check=True)
END
    touch "$arm/site/.complete"
fi

cat >"$arm/toolchain.cmake" <<END
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CXX_FLAGS_INIT "-idirafter $arm/root/usr/include")  # Debian splits pyconfig.h by architecture
END
cmake -G Ninja -S . -B "$arm/native" -DCMAKE_TOOLCHAIN_FILE="$arm/toolchain.cmake" \
    -DPython_EXECUTABLE="$arm/venv/bin/python" -DPython_INCLUDE_DIR="$arm/root/usr/include/python$version"
cmake --build "$arm/native"

rm -rf "$arm/stage"
mkdir -p "$arm/stage"
cp -r mixkv "$arm/stage/mixkv"
for room in kernels models engine cli configs; do cp -r "$room" "$arm/stage/mixkv/$room"; done
cp "$arm"/native/_native*.so "$arm/stage/mixkv/kernels/"

# Left out: a thread started in a forked child makes qemu 7.2 itself abort.
[ $# -gt 0 ] || set -- tests/test_native_*.py tests/test_operator.py tests/test_kv_store.py tests/test_kv_cache.py tests/test_determinism.py \
    --deselect tests/test_native_faults.py::test_a_child_forked_in_the_middle_of_calls_computes
PYTHONPATH=$arm/stage exec "$arm/venv/bin/python" -P -m pytest -p no:cacheprovider "$@"
