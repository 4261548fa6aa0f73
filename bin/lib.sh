# shellcheck shell=bash
# Sourced by the scripts of this folder: says what a machine lacks, and makes the virtual environment.
#
# MIGRATE_PYTHON   the Python to use (default: python3, else the newest python3.x found)
# MIGRATE_VENV     where the virtual environment goes (default: .venv in the checkout)

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=${MIGRATE_VENV:-$root/.venv}

say() { printf '%s\n' "$*" >&2; }

die() { # EXIT-CODE MESSAGE...
    local code=$1
    shift
    say "$(basename "$0"): $*"
    exit "$code"
}

python_is_new_enough() { # PYTHON
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# Sets `python` to the path of a Python >= 3.11, or to nothing.
find_python() {
    local candidate
    python=
    for candidate in ${MIGRATE_PYTHON:+"$MIGRATE_PYTHON"} python3 /usr/bin/python3 python3.13 python3.12 python3.11; do
        if command -v "$candidate" >/dev/null && python_is_new_enough "$candidate"; then
            python=$(command -v "$candidate")
            return
        fi
    done
}

can_compile() { # COMPILER PROGRAM [FLAGS...]
    local compiler=$1 program=$2
    shift 2
    printf '%s\n' "$program" | "$compiler" -x c -fsyntax-only "$@" - 2>/dev/null
}

# What is missing to build and run the package, one line each: "what<tab>Debian package".
missing_tools() {
    local compiler include
    find_python
    if [ -z "$python" ]; then
        printf 'Python 3.11 or newer\tpython3\nits venv module\tpython3-venv\nits Python.h\tpython3-dev\n'
    elif ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
        printf 'the venv module of %s\tpython3-venv\n' "$python"
    fi
    compiler=${CC:-cc}
    if ! command -v "${compiler%% *}" >/dev/null; then
        printf 'a C compiler\tgcc\nthe headers of the C library\tlibc6-dev\n'
    elif ! can_compile "${compiler%% *}" '#include <stdio.h>'; then
        printf 'the headers of the C library\tlibc6-dev\n'
    fi
    if [ -n "$python" ]; then
        include=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
        [ -e "$include/Python.h" ] || printf 'Python.h of %s\tpython3-dev\n' "$python"
    fi
}

require_tools() {
    local missing
    missing=$(missing_tools)
    [ -n "$missing" ] || return 0
    say "$(basename "$0"): this machine lacks:"
    awk -F'\t' '{ printf "  %s (Debian package %s)\n", $1, $2 }' <<<"$missing" >&2
    say "On Debian or Ubuntu:  apt-get install $(cut -f2 <<<"$missing" | sort -u | paste -sd' ')"
    exit 2
}

# All that the installed package depends on: the build's description, the compiled sources, Python, the place.
install_stamp() {
    {
        printf '%s\n' "$python"
        "$python" --version
        find "$root/pyproject.toml" "$root/migrate" -type f ! -name _native.c \
            \( -name pyproject.toml -o -name '*.c' -o -name '*.h' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.pxi' \) -print0 |
            LC_ALL=C sort -z | xargs -0 sha256sum
    } | sha256sum | cut -d' ' -f1
}

# Make or renew the virtual environment. `ensure_venv run` is enough for the programs; `ensure_venv dev`
# adds what tests and checks need. A second caller waits for the first.
ensure_venv() { # run|dev
    local wanted=$1 stamp
    find_python
    [ -n "$python" ] || require_tools
    stamp=$(install_stamp)
    if installed "$wanted" "$stamp"; then
        return
    fi
    require_tools
    mkdir -p "$venv"
    (
        flock 9
        if ! installed "$wanted" "$stamp"; then
            install_package "$wanted" "$stamp"
        fi
    ) 9>"$venv/.lock"
}

installed() { # run|dev STAMP
    [ -x "$venv/bin/python" ] || return 1
    [ "$(cat "$venv/.installed-dev" 2>/dev/null)" = "$2" ] && return
    [ "$1" = run ] && [ "$(cat "$venv/.installed-run" 2>/dev/null)" = "$2" ]
}

install_package() { # run|dev STAMP
    local extra="" log="$venv/.install.log"
    [ "$1" = dev ] && extra="[dev]"
    say "Setting up $venv (a minute the first time) ..."
    rm -f "$venv"/.installed-*
    # Objects of other sources must not survive: setuptools does not see that a header changed.
    rm -rf "$root"/build/lib* "$root"/build/temp* "$root"/migrate/kernel/*.so "$root"/migrate/guest/*.so
    if ! { "$python" -m venv "$venv" && pip_install -e "$root$extra"; } >"$log" 2>&1 9>&-; then
        tail -n 40 "$log" >&2
        die 1 "the installation failed; all of its output is in $log"
    fi
    printf '%s\n' "$2" >"$venv/.installed-$1"
}

pip_install() {
    "$venv/bin/python" -m pip install --disable-pip-version-check --no-input "$@"
}
