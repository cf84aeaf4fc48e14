# Sourced by the scripts beside it and by .ci/run. Sets `root` and `bin`, and gives `ensure_environment`.
#
# .venv/leyden-stamp says what the environment was made from. It is taken away before an installation begins and written
# after it has ended, so an environment without it is unfinished, or not ours, and is made again.

root="$(cd -P "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)"
bin="$root/.venv/bin"
minimum="3, 11"

version_of() { # python -> "3.11"; fails where it does not run or is too old
    "$1" -S -c "import sys; print('%d.%d' % sys.version_info[:2]); sys.exit(sys.version_info < ($minimum))" 2>/dev/null
}

find_python() { # ensurepip is what Debian leaves out without its python3-venv package
    local candidate
    PATH="${PATH//"$bin:"/}" # an activated .venv cannot make itself again
    for candidate in python3.13 python3.12 python3.11 python3 python; do
        if version_of "$candidate" >/dev/null && "$candidate" -c "import ensurepip, venv" 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "error: no Python >= ${minimum/, /.} with the venv module found (tried python3.13, python3.12, python3.11, python3, python)" >&2
    return 1
}

# Compares .venv with what it should be made from. Sets `state` (fresh, outdated or unusable), `extra` (core or dev: what
# to install, never less than is there), `place` and `inputs` (what the stamp holds).
inspect_environment() { # core|dev
    local had_extra="" had_place="" had_inputs=""
    extra="$1" state=fresh
    place="$(version_of "$bin/python") $root" || place=""
    inputs="$(cat "$root/pyproject.toml" "$root/constraints.txt" | cksum)"
    if [[ -f "$root/.venv/leyden-stamp" ]]; then
        { read -r had_extra && read -r had_place && read -r had_inputs; } <"$root/.venv/leyden-stamp" || true
    fi
    if [[ -z "$place" || "$place" != "$had_place" ]]; then
        state=unusable
    elif [[ "$inputs" != "$had_inputs" || ("$extra" == dev && "$had_extra" != dev) ]]; then
        state=outdated
        if [[ "$had_extra" == dev ]]; then extra=dev; fi
    fi
}

install_environment() { # core|dev; runs alone
    local python target=. stamp="$root/.venv/leyden-stamp" log="$root/.venv/leyden-setup.log"
    inspect_environment "$1" # whoever held the lock before us may have done the work
    if [[ "$state" == fresh ]]; then return; fi
    if [[ "$state" == unusable ]]; then
        python="$(find_python)" || return
        if [[ -e "$root/.venv" ]]; then
            echo "Setting up .venv again (it is unfinished, or from elsewhere; a minute or two) ..." >&2
            rm -f "$stamp" && rm -rf "$root/.venv" || return
        else
            echo "Setting up .venv (first run, a minute or two) ..." >&2
        fi
        "$python" -m venv "$root/.venv" || return
        place="$(version_of "$bin/python") $root"
    else
        echo "Updating .venv ..." >&2
        mv "$stamp" "$stamp.old" || return
    fi
    if [[ "$extra" == dev ]]; then target=".[dev]"; fi
    if ! (cd "$root" && "$bin/python" -m pip install --quiet --no-input -c constraints.txt -e "$target" >"$log" 2>&1); then
        if [[ "$state" == outdated ]]; then mv "$stamp.old" "$stamp"; fi # nothing changed: pip undoes what it began
        cat "$log" >&2
        echo "error: .venv could not be set up; pip's words are above" >&2
        return 1
    fi
    printf '%s\n' "$extra" "$place" "$inputs" >"$stamp"
}

ensure_environment() { # core|dev
    inspect_environment "$1"
    if [[ "$state" == fresh ]]; then return; fi
    ( # the lock ends with this subshell, so what runs afterwards does not hold it
        if command -v flock >/dev/null && ! flock -n 9; then
            echo "Waiting for another run that sets up .venv ..." >&2
            flock 9
        fi
        trap "exit 130" INT # an interrupted pip leaves things half changed: then no stamp comes back
        install_environment "$1"
    ) 9>"$root/.venv.lock"
}
