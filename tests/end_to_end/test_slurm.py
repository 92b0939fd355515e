"""The job for Slurm is preempted, queued again and resumed on a real Slurm of one node and a real Ray.

Slurm and Ray run in their own namespaces, because `ray symmetric-run` ends every Ray that it sees. The workers sleep
instead of labelling. tests/infra/test_slurm.py tests what needs no Slurm.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from clusters import short_folder
from namespaces import isolated, needs_root
from runs import DEADLINE, environment

from pipeline.output.commit import read_commits
from pipeline.storage import Storage

pytestmark = [needs_root, pytest.mark.cluster]

JOB = Path(__file__).parents[2] / "infra" / "slurm" / "diffseg.sbatch"
SLEEPERS = Path(__file__).parent / "harness" / "sleepers.py"
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(10.9.8.7)
AuthType=auth/none
CredType=cred/none
CryptoType=crypto/none
SlurmUser=root
StateSaveLocation=/tmp/state
SlurmdSpoolDir=/tmp/spool
SlurmctldPidFile=/tmp/slurmctld.pid
SlurmdPidFile=/tmp/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/linear
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=20
MpiDefault=none
NodeName={host} NodeAddr=10.9.8.7 CPUs={cpus} State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace}
PartitionName=high Nodes=ALL PriorityTier=2 PreemptMode=OFF
"""
DIFFSEG = f"""#!/bin/bash
[ "$1" = label ] && shift && exec {sys.executable} {SLEEPERS} 0.5 "$@"
"""
HOSTNAME = """#!/bin/bash
echo 10.9.8.7  # which is on the loopback interface in this namespace, and `hostname -I` leaves that out
"""
SHARDS = 300


@pytest.mark.parametrize("grace", [0, 30])
def test_a_preempted_job_is_queued_again_and_resumes(grace: int) -> None:
    if not all(map(shutil.which, ("slurmctld", "slurmd", "sbatch"))):
        pytest.skip("Slurm is not on PATH: apt-get install slurmd slurmctld slurm-client")
    with short_folder() as folder:
        machine = {"host": os.uname().nodename, "cpus": os.cpu_count()}
        (folder / "slurm.conf").write_text(CONFIGURATION.format(**machine, grace=grace))
        (folder / "bin").mkdir()
        for name, text in (("diffseg", DIFFSEG), ("hostname", HOSTNAME)):
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)
        path = os.pathsep.join(["/tmp/bin", str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin"])
        variables = environment() | {"PATH": path, "SLURM_CONF": "/tmp/slurm.conf", "HOME": "/tmp", "TMPDIR": "/tmp"}
        source = f"/tmp/{{{','.join(f'{number:03d}' for number in range(SHARDS))}}}.tar"
        script = f"""
            mkdir state spool
            slurmctld -D > slurmctld.log 2>&1 &
            slurmd -D > slurmd.log 2>&1 &
            until sinfo --noheader --format %t | grep -q idle; do sleep 0.2; done
            job=$(sbatch --parsable --output log --chdir /tmp {JOB} '{source}' /tmp/out --device cpu --workers 1)
            until [ "$(ls out/commits 2> /dev/null | wc -l)" -ge 2 ]; do sleep 0.2; done
            sbatch --partition high --exclusive --output /dev/null --wrap 'sleep 1'
            until scontrol show job "$job" | grep -q JobState=PENDING; do sleep 0.2; done
            scontrol update jobid="$job" starttime=now  # instead of two minutes later
            until grep -q '^start 2 of job' log; do sleep 0.2; done
            ls out/commits | wc -l > before
            touch hurry
            until scontrol show job "$job" | grep -qE 'JobState=(COMPLETED|FAILED)'; do sleep 0.5; done
            scontrol show job "$job" > state-of-job
            ls -d /tmp/ray-* > sessions
        """
        done = subprocess.run(
            isolated(script, folder), env=variables, capture_output=True, text=True, timeout=DEADLINE, check=False
        )
        log = (folder / "log").read_text() if (folder / "log").exists() else ""
        assert "JobState=COMPLETED" in (folder / "state-of-job").read_text(), log + done.stdout + done.stderr
        assert "Restarts=1" in (folder / "state-of-job").read_text()
        before = int((folder / "before").read_text())
        assert 2 <= before < SHARDS
        commits = read_commits(Storage(url=str(folder / "out"))).values()
        assert Counter(commit.attempt for commit in commits) == {1: SHARDS}
        assert (folder / "sessions").read_text() == ""
