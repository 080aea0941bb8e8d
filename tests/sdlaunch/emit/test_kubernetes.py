"""`emit kubernetes`, read as YAML and checked against the schema of Kubernetes."""

import kubernetes_validate
import pytest
import yaml

from tests.sdlaunch.emit.emitted import AWKWARD, ENV, MOUNTS, NODES, NUMBERED, SETTINGS, emit, undollared


def literal(env):
    return {each["name"]: undollared(each["value"]) for each in env if "value" in each}


def assert_only_pods_of_the_job_reach_each_other(policy, label, job):
    pods = {"podSelector": {"matchLabels": {label: job["metadata"]["name"]}}}
    assert (policy["apiVersion"], policy["kind"]) == ("networking.k8s.io/v1", "NetworkPolicy")
    assert policy["spec"] == {**pods, "policyTypes": ["Ingress"], "ingress": [{"from": [pods]}]}


@pytest.mark.parametrize("kind", ["trainjob", "job"])
def test_no_other_pod_reaches_a_job_on_one_node(kind):
    policy, *_ = yaml.safe_load_all(emit("kubernetes", f"--kind={kind}", **SETTINGS))
    assert (policy["kind"], policy["spec"]["ingress"]) == ("NetworkPolicy", [])


def test_kubernetes_trainjob():
    policy, job = yaml.safe_load_all(emit("kubernetes", **SETTINGS, **NUMBERED))
    assert_only_pods_of_the_job_reach_each_other(policy, "jobset.sigs.k8s.io/jobset-name", job)
    assert (job["apiVersion"], job["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    trainer = job["spec"]["trainer"]
    assert literal(trainer.pop("env")) == {"instance_prompt": AWKWARD, "lr": "1e-4"}
    assert trainer == {
        "image": "sd-finetune:cuda",
        "command": ["bash", "/mnt/project/train.sh"],
        "numNodes": 2,
        "numProcPerNode": 2,
        "resourcesPerNode": {"limits": {"nvidia.com/gpu": 2}},
    }
    (patch,) = job["spec"]["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]["spec"]
    assert (node["name"], pod["terminationGracePeriodSeconds"]) == ("node", 35)
    assert pod["volumes"][0] == {"name": "model", "hostPath": {"path": "/a b/model"}}
    claim = {"name": "output", "persistentVolumeClaim": {"claimName": "sdjob-output"}}
    assert pod["volumes"][3] == claim  # nodes that write into one folder
    shm = {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}}
    assert pod["volumes"][-1] == shm
    assert pod["containers"][0]["volumeMounts"][3] == {
        "name": "output",
        "mountPath": "/output",
        "readOnly": False,
    }


def test_kubernetes_job_on_two_nodes():
    policy, service, job = yaml.safe_load_all(emit("kubernetes", "--kind=job", **SETTINGS, **NUMBERED))
    assert_only_pods_of_the_job_reach_each_other(policy, "batch.kubernetes.io/job-name", job)
    assert (service["kind"], service["spec"]["clusterIP"]) == ("Service", "None")
    spec = job["spec"]
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 2, 2)
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule == {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [64, 66, 69, 73]}}
    pod = spec["template"]["spec"]
    assert (pod["restartPolicy"], pod["subdomain"], pod["terminationGracePeriodSeconds"]) == (
        "Never",
        service["metadata"]["name"],
        35,
    )
    (container,) = pod["containers"]
    there = {"NNODES": "2", "MASTER_ADDR": "sdjob-0.sdjob", "MASTER_PORT": "29400"}
    assert literal(container["env"]) == ENV | there
    assert [each["name"] for each in container["env"][-2:]] == ["rendezvous_id", "NODE_RANK"]
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 2}}


def test_a_name_of_the_meeting_that_is_set_stays():
    *_, job = yaml.safe_load_all(emit("kubernetes", "--kind=job", **SETTINGS, **NUMBERED, rendezvous_id="a"))
    (container,) = job["spec"]["template"]["spec"]["containers"]
    values = [each.get("value") for each in container["env"] if each["name"] == "rendezvous_id"]
    assert values == ["a"]


@pytest.mark.parametrize("variables", [SETTINGS, SETTINGS | NODES, {**MOUNTS, "device": "cpu"}])
def test_the_indexed_job_is_valid_for_kubernetes(variables):
    """Against the OpenAPI schema of this Kubernetes version, where an unknown field is an error."""
    documents = list(yaml.safe_load_all(emit("kubernetes", "--kind=job", **variables)))
    for document in documents:
        kubernetes_validate.validate(document, "1.33", strict=True)
    documents[-1]["spec"]["template"]["spec"]["subdomane"] = "x"
    with pytest.raises(kubernetes_validate.ValidationError, match="subdomane"):
        kubernetes_validate.validate(documents[-1], "1.33", strict=True)
