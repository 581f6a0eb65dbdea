package catalog

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// few are names so few that commands meet each other.
func few(prefix string) *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		return fmt.Sprint(prefix, rapid.IntRange(1, 4).Draw(t, prefix))
	})
}

// anyCommand draws commands of all kinds, sensible or not.
func anyCommand(t *rapid.T) Command {
	tags := rapid.MapOfN(few("k"), few("v"), 0, 2)
	id, node, name := few("c").Draw(t, "id"), few("n").Draw(t, "node"), few("x").Draw(t, "name")
	port := rapid.Custom(func(t *rapid.T) Port {
		return Port{HostPort: rapid.SampledFrom([]uint16{0, 80, 81}).Draw(t, "host"), ContainerPort: 80, Proto: "tcp"}
	})
	seq := rapid.Uint64Range(1, 9).Draw(t, "seq")
	state := rapid.SampledFrom([]container.ContainerState{"created", "running", "exited"})
	switch Kind(rapid.IntRange(1, int(KindPutVolumes)).Draw(t, "kind")) {
	case KindSetSettings:
		return SetSettings{Name: name, Subnet: DefaultSubnet}
	case KindSetSecret:
		return SetSecret{Secret: name}
	case KindPutNode:
		return PutNode{Node{ID: node, Name: "host " + node, Tags: tags.Draw(t, "tags")}}
	case KindRemoveNode:
		return RemoveNode{node}
	case KindNodeTags:
		return NodeTags{ID: node, Set: tags.Draw(t, "tags"), Remove: []string{"k1"}}
	case KindSetNodeDown:
		return SetNodeDown{ID: node, Down: seq%2 == 0}
	case KindClaimContainer:
		return ClaimContainer{ID: id, Name: name, NodeID: node, Ports: rapid.SliceOfN(port, 0, 2).Draw(t, "ports")}
	case KindClaimPorts:
		return ClaimPorts{id}
	case KindReleaseClaim:
		return ReleaseClaim{id}
	case KindPutContainers:
		return PutContainers{NodeID: node, Seq: seq, Full: seq%3 == 0, Gone: []string{few("c").Draw(t, "gone")}, Containers: []Container{{
			ID: id, Name: name, State: state.Draw(t, "state"), Ports: rapid.SliceOfN(port, 0, 2).Draw(t, "ports"),
		}}}
	case KindRemoveContainer:
		return RemoveContainer{id}
	case KindRenameContainer:
		return RenameContainer{ID: id, Name: name}
	case KindContainerTags:
		return ContainerTags{ID: id, Set: tags.Draw(t, "tags")}
	case KindPutImages:
		return PutImages{NodeID: node, Seq: seq, Full: seq%2 == 0, Images: []Image{{Digest: name, Summary: image.Summary{ID: name}}}, Gone: []string{"x1"}}
	case KindSetRef:
		return SetRef{Ref{name, id}}
	case KindSetPrivate:
		return SetPrivate{Private{Digest: name, ID: rapid.SampledFrom([]string{"", name, id}).Draw(t, "of"), Names: []string{few("x").Draw(t, "named")}, Nodes: []string{node}, Tags: []string{"k1=v1"}}}
	case KindDropPrivate:
		return DropPrivate{Digest: name}
	case KindClaimVolume:
		return ClaimVolume{Name: name, NodeID: node}
	case KindReleaseVolume:
		return ReleaseVolume{Name: name, NodeID: node}
	case KindPutVolumes:
		return PutVolumes{NodeID: node, Seq: seq, Full: seq%2 == 0, Volumes: []Volume{{Name: name}}, Gone: []string{few("x").Draw(t, "gone")}}
	default:
		return DropRef{Name: name, Digest: rapid.SampledFrom([]string{"", id}).Draw(t, "digest")}
	}
}

func dump(t require.TestingT, s *State) string {
	var b bytes.Buffer
	require.NoError(t, writeSnapshot(&b, s.view()))
	return b.String()
}

// TestReplicasAgree: two replicas, one of which is now and then replaced by its own
// snapshot, come to the same state and the same answers.
func TestReplicasAgree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		one, two := NewState(), NewState()
		for i := range uint64(rapid.IntRange(1, 40).Draw(t, "entries")) {
			var batch []entry
			for range rapid.IntRange(1, 3).Draw(t, "batch") {
				e, err := newEntry(anyCommand(t), time.Unix(int64(i), 0), rapid.Uint64().Draw(t, "seed"))
				require.NoError(t, err)
				batch = append(batch, e)
			}
			log := encodeBatch(batch)
			var answers []string
			for _, s := range []*State{one, two} {
				read, err := decodeBatch(log)
				require.NoError(t, err)
				out, err := s.apply(i+1, read)
				require.NoError(t, err)
				said := ""
				for _, o := range out {
					said += string(answerOf(0, o.result, o.err).encode())
				}
				answers = append(answers, said)
			}
			require.Equal(t, answers[0], answers[1])
			if rapid.Bool().Draw(t, "snapshot") {
				db, index, err := readSnapshot(bytes.NewReader([]byte(dump(t, two))))
				require.NoError(t, err)
				two.reset(db, index)
			}
			require.Equal(t, dump(t, one), dump(t, two))
			consistent(t, one)
		}
	})
}

// consistent checks what must hold at every moment.
func consistent(t *rapid.T, s *State) {
	v := s.view()
	names := map[string]string{}
	nodes := map[string]bool{}
	subnets := map[string]string{}
	for _, n := range v.Nodes() {
		nodes[n.ID] = true
		require.Empty(t, subnets[n.Subnet.String()], "a slice has two nodes")
		subnets[n.Subnet.String()] = n.ID
	}
	for _, x := range v.Volumes() {
		require.True(t, nodes[x.NodeID], "volume %s is on no node", x.Name)
	}
	passing := map[string]bool{}
	for _, p := range v.Private() {
		for _, n := range p.Nodes {
			require.True(t, nodes[n], "image %s is private to a node that is gone", p.Digest)
		}
		for _, n := range p.Names {
			require.False(t, passing[n], "name %s is in two records", n)
			passing[n] = true
		}
	}
	for _, c := range v.Containers() {
		require.Empty(t, names[c.Name], "name %s has two containers", c.Name)
		names[c.Name] = c.ID
		require.True(t, nodes[c.NodeID], "container %s is on no node", c.ID)
		found, err := v.Container(c.Name)
		require.NoError(t, err)
		require.Equal(t, c.ID, found.ID)
	}
	taken := map[string]string{}
	for _, p := range list[portClaim](v.db.Txn(false), tablePort, "id_prefix", "") {
		k := portPrefix(p.Port.Proto, p.Port.HostPort)
		require.Contains(t, []string{"", p.ContainerID}, taken[k], "port %s has two containers", k)
		taken[k] = p.ContainerID
		_, err := v.Container(p.ContainerID)
		require.NoError(t, err, "a port is claimed by nobody")
	}
}
