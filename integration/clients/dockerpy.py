"""What people do with Docker's Python SDK, each call on another node."""
import io
import os
import tarfile
import time

import docker

nodes = [docker.DockerClient(base_url=os.environ[f"NODE{n}"]) for n in (1, 2, 3)]
one, two, three = nodes


def gone(get, name):
    """A node that wasn't asked to remove something hears of it a moment later."""
    end = time.monotonic() + 5
    while True:
        try:
            get(name)
        except docker.errors.NotFound:
            return
        if time.monotonic() > end:
            raise SystemExit(f"{name} was removed and must be gone")


for node in nodes:
    assert node.ping()
    assert node.version()["ApiVersion"]
    assert node.info()["Containers"] >= 0

out = one.containers.run("busybox", ["echo", "hello"], remove=True)
assert out == b"hello\n", out

try:
    two.containers.run("busybox", ["sh", "-c", "echo oops >&2; exit 3"], remove=True)
    raise SystemExit("a failing container must raise")
except docker.errors.ContainerError as e:
    assert e.exit_status == 3, e
    assert b"oops" in e.stderr, e.stderr

c = one.containers.run("busybox", ["sh", "-c", "echo started; sleep 1000"], detach=True,
                       name="from-python", labels={"made": "here"}, environment={"A": "b"})
try:
    same = three.containers.get("from-python")
    assert same.id == c.id
    assert same.status == "running", same.status
    assert same.labels["made"] == "here"
    code, out = same.exec_run(["sh", "-c", "echo $A; exit 4"])
    assert (code, out) == (4, b"b\n"), (code, out)
    code, (stdout, stderr) = same.exec_run(["sh", "-c", "echo o; echo e >&2"], demux=True)
    assert (stdout, stderr) == (b"o\n", b"e\n")
    for line in two.containers.get(c.id[:12]).logs(stream=True, follow=True):
        assert line == b"started\n", line
        break
    assert [x.id for x in two.containers.list(filters={"label": "made=here"})] == [c.id]
    assert "sleep 1000" in str(three.api.top(c.id))
    sock = two.api.attach_socket(c.id, params={"stdout": 1, "stream": 1})
    sock.close()
    c.stop(timeout=0)
    assert two.api.wait(c.id)["StatusCode"] == 137
    c.rename("renamed")
    assert three.containers.get("renamed").id == c.id
finally:
    two.containers.get(c.id).remove(force=True)

gone(three.containers.get, "from-python")

image = two.images.get("busybox")
assert image.tag("python", "1")
assert three.images.get("python:1").id == image.id
saved = b"".join(three.images.get("python:1").save(named=True))
with tarfile.open(fileobj=io.BytesIO(saved)) as t:
    assert "manifest.json" in t.getnames()
one.images.remove("python:1")
gone(two.images.get, "python:1")

try:
    one.images.pull("nobody/has-this", tag="1")
    raise SystemExit("an unknown image can't be pulled")
except docker.errors.APIError:
    pass

assert any(n.name == "bridge" for n in one.networks.list())
print("the Python SDK works")
