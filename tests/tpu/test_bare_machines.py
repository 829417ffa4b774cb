"""The shell scripts in tpu/ on machines that stand-ins make: bare, full, taken away."""

import os
import pathlib
import shutil
import subprocess

import pytest

TPU = pathlib.Path(__file__).resolve().parents[2] / "tpu"
pytestmark = pytest.mark.skipif(
    not TPU.is_dir(), reason="the scripts are not in the wheel"
)
TOOLS = (
    *("bash", "cat", "chmod", "cp", "dirname", "env", "ln", "mkdir", "mktemp", "rm"),
    *("sed", "sleep", "tar", "gzip"),
)


class Machine:
    """A PATH of stand-ins alone, and a log of what they were called with."""

    def __init__(self, folder):
        self.bin, self.home, self.log = (folder / n for n in ("bin", "home", "log"))
        for made in (self.bin, self.home):
            made.mkdir(parents=True)
        self.log.touch()
        for name in TOOLS:
            os.symlink(shutil.which(name), self.bin / name)

    def has(self, name, text, *, where=None):
        path = (where or self.bin) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        call = f'echo "{name} $*" >> {self.log}'
        path.write_text(f"#!{shutil.which('bash')}\n{call}\n{text}\n")
        path.chmod(0o755)

    def run(self, script, *arguments, code=0):
        done = subprocess.run(
            ["bash", str(TPU / script), *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            stdin=subprocess.DEVNULL,
            env={"PATH": str(self.bin), "HOME": str(self.home), "PAUSE": "0"},
        )
        assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout + done.stderr

    def calls(self, start=""):
        return [s for s in self.log.read_text().splitlines() if s.startswith(start)]


OLD = """
if [ "$2" = pip ]; then exit {pip}; fi
exit 1  # too old, and without venv
"""
# Makes an environment: venv and uv are called with its folder at the end.
NEW = """
for last; do :; done
case "$*" in
  *"-m venv"* | *"venv --seed"*)
    mkdir -p "$last/bin"
    printf '#!%s\\nexit 0\\n' "$(command -v bash)" > "$last/bin/python"
    chmod +x "$last/bin/python"
    cp "$last/bin/python" "$last/bin/pip" ;;
esac
"""


@pytest.fixture
def bare(tmp_path):
    """Ubuntu 22.04 as it comes: Python 3.10, no venv module, no pip."""
    machine = Machine(tmp_path)
    machine.has("python3", OLD.format(pip=1))
    machine.has("id", "echo 1000")
    machine.has("sudo", '"$@"')
    return machine


def test_a_newer_python_that_is_there_is_taken(bare):
    bare.has("python3.11", NEW)
    bare.has("python3.12", 'case "$2" in *ensurepip*) exit 1 ;; esac')
    assert "Ready: " in bare.run("setup.sh")
    assert bare.calls("python3.11 -m venv") == [
        f"python3.11 -m venv {bare.home}/dlopt-env"
    ]
    assert not bare.calls("apt-get")
    # What is there is used again.
    bare.run("setup.sh")
    assert len(bare.calls("python3.11 -m venv")) == 1


def test_apt_brings_one_where_none_is(bare, tmp_path):
    new = tmp_path / "new"
    bare.has("python3.11", NEW, where=new)
    bare.has(
        "apt-get",
        f"""case "$*" in
          *python3.12*) exit 100 ;;  # not in 22.04
          *python3.11-venv*) cp {new}/python3.11 {bare.bin}/ ;;
        esac""",
    )
    text = bare.run("setup.sh", "--kind", "step")
    assert "no Python from 3.11 to 3.13 with the venv module here" in text
    (wanted,) = [c for c in bare.calls("apt-get") if "python3.11-venv" in c]
    assert "-o DPkg::Lock::Timeout=600 install -qy python3.11 python3.11-venv" in wanted
    assert bare.calls("sudo env DEBIAN_FRONTEND=noninteractive apt-get")
    assert (bare.home / "dlopt-env" / "bin" / "pip").exists()


def test_uv_brings_one_where_pip_is(bare, tmp_path):
    bare.has("uv", NEW, where=tmp_path / "new")
    bring = f"mkdir -p $HOME/.local/bin; cp {tmp_path}/new/uv $HOME/.local/bin/"
    install = f'if [ "$3" = install ]; then {bring}; fi\n'
    bare.has("python3", install + OLD.format(pip=0))
    bare.run("setup.sh")
    assert bare.calls("uv") == [f"uv venv --seed --python 3.12 {bare.home}/dlopt-env"]


def test_a_machine_that_cannot_get_one_says_what_to_do(bare):
    text = bare.run("setup.sh", code=1)
    assert "Install Python 3.11, 3.12 or 3.13 with its venv module, and call" in text
    bare.has("apt-get", "exit 100")
    assert "none could be installed either" in bare.run("setup.sh", code=1)
    # A network that comes up late.
    assert len([c for c in bare.calls("apt-get") if " update " in c]) == 3


GCLOUD = """
verb=$4
case "$verb" in
  describe) [ -e $HOME/there ] ;;
  create)
    left=$(cat $HOME/full 2>/dev/null || echo 0)
    if [ "$left" -gt 0 ]; then
      echo $((left - 1)) > $HOME/full
      echo "ERROR: no capacity in zone" >&2; exit 1
    fi
    mkdir -p $HOME/vm ;;
  delete) rm -rf $HOME/vm ;;
  scp)
    from=$5; to=$6
    if [ "$from" = --recurse ]; then from=$6; to=$7; fi
    case "$from" in
      *..) echo "scp: error: unexpected filename: .." >&2; exit 1 ;;  # before 9.0
      *:*) cp -r "$HOME/vm/${from#*:}" "$to" ;;
      *) cp "$from" "$HOME/vm/${to#*:}" ;;
    esac ;;
  ssh)
    for last; do :; done
    [ -d $HOME/vm ] || exit 1
    cd $HOME/vm && HOME=$HOME/vm bash -c "$last" ;;
esac
"""
# In the place of setup.sh's environment: train.py ends as the file `ends` says.
PYTHON = """
case "$*" in
  *train.py*)
    read -r code < $HOME/../ends
    sed -i 1d $HOME/../ends
    echo trained > run/result
    if [ "$code" = gone ]; then rm -rf $HOME; exit 255; fi
    exit $code ;;
esac
"""
GIVEN = ("--name", "a", "--zone", "z", "--type", "v5litepod-8", "--wait", "0")


@pytest.fixture
def cloud(tmp_path):
    """gcloud and ssh, with a folder for the machine."""
    machine = Machine(tmp_path / "one")
    machine.has("gcloud", GCLOUD)
    machine.has("python3.11", "exit 1")
    machine.has("python3.12", NEW_ENVIRONMENT.format(python=tmp_path / "python"))
    machine.has("python", PYTHON, where=tmp_path / "python")
    yield machine
    shutil.rmtree(TPU / "run-a", ignore_errors=True)


NEW_ENVIRONMENT = """
for last; do :; done
case "$*" in
  *"-m venv"*) mkdir -p "$last/bin"; cp {python}/python "$last/bin/python"
    cp {python}/python "$last/bin/pip" ;;
esac
"""


def verbs(machine):
    skip = len("gcloud compute tpus tpu-vm ")
    return [c[skip:].split()[0] for c in machine.calls("gcloud")]


def test_a_run_from_creation_to_deletion(cloud):
    (cloud.home / "ends").write_text("0\n")
    cloud.run("run_pod.sh", *GIVEN, "--", "--model", "resnet20", "--data", "my data")
    assert verbs(cloud) == [
        *("describe", "create", "scp", "ssh", "ssh", "ssh", "scp", "delete")
    ]
    (trained,) = [c for c in cloud.calls("python ") if "train.py" in c]
    assert trained.endswith("--checkpoint run --model resnet20 --data my data")
    assert (TPU / "run-a" / "result").read_text() == "trained\n"
    assert not (cloud.home / "vm").exists()


def test_only_what_is_needed_is_copied(cloud):
    (cloud.home / "ends").write_text("0\n")
    keep = f"cp -r $HOME/vm {cloud.home}/kept"
    cloud.has("gcloud", GCLOUD.replace("delete) ", f"delete) {keep}; "))
    cloud.run("run_pod.sh", *GIVEN)
    copied = cloud.home / "kept" / "keras_dlopt"
    assert {p.name for p in copied.iterdir()} == {
        *("LICENSE", "README.md", "keras_dlopt", "pyproject.toml", "tpu")
    }
    assert (copied / "keras_dlopt" / "__init__.py").is_file()
    assert not list(copied.rglob("__pycache__"))
    assert not list(copied.rglob(".git"))


def test_it_asks_again_where_no_machine_is_free(cloud):
    (cloud.home / "ends").write_text("0\n")
    (cloud.home / "full").write_text("2")
    text = cloud.run("run_pod.sh", *GIVEN)
    assert verbs(cloud).count("create") == 3
    assert "no machine, or it could not be set up" in text
    assert "attempt 3 of 10" in text
    (cloud.home / "full").write_text("9")
    text = cloud.run("run_pod.sh", *GIVEN, "--retries", "3", code=1)
    assert "gave up after 3 attempts" in text


def test_it_starts_again_when_the_machine_was_taken_away(cloud):
    (cloud.home / "ends").write_text("gone\n0\n")
    cloud.run("run_pod.sh", *GIVEN)
    assert verbs(cloud).count("create") == 2
    assert verbs(cloud)[-1] == "delete"


@pytest.mark.parametrize("ends", [1, 2])
def test_what_training_refuses_is_not_paid_for_again(cloud, ends):
    (cloud.home / "ends").write_text(f"{ends}\n")
    text = cloud.run("run_pod.sh", *GIVEN, code=ends)
    assert "training ended by itself" in text
    assert verbs(cloud).count("create") == 1
    assert verbs(cloud)[-1] == "delete"


def test_a_machine_of_that_name_is_left_alone(cloud):
    (cloud.home / "there").touch()
    text = cloud.run("run_pod.sh", *GIVEN, code=2)
    assert "a TPU named a is there already" in text
    assert verbs(cloud) == ["describe"]
    text = cloud.run("run_pod.sh", *GIVEN[:-1], "soon", code=2)
    assert "--wait must be a whole number, not soon" in text
