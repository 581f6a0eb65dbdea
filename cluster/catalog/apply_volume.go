package catalog

import (
	"cmp"
	"slices"
	"strings"

	"github.com/shoal-engine/shoal/api"
)

// maxVolumeName bounds what a claim may ask for; volumes are directories.
const maxVolumeName = 255

func claimVolume(t tx, c ClaimVolume) (Result, error) {
	if c.Name == "" || len(c.Name) > maxVolumeName || strings.ContainsAny(c.Name, "/\x00") {
		return Result{}, api.InvalidArgument("invalid volume name %q", c.Name[:min(len(c.Name), maxVolumeName)])
	}
	if same := pointers[Volume](t.Txn, tableVolume, "name", c.Name); len(same) > 0 {
		found := *slices.MinFunc(same, olderVolume)
		return Result{Volume: &found}, nil
	}
	if _, ok := first[Node](t.Txn, tableNode, "id", c.NodeID); !ok {
		return Result{}, api.NotFound("node %s not found", c.NodeID)
	}
	v := Volume{Name: c.Name, NodeID: c.NodeID, Claimed: t.at}
	shown := v
	return Result{Volume: &shown}, put(t, tableVolume, &v)
}

// olderVolume orders volumes of one name: the first is what the name means.
func olderVolume(a, b *Volume) int {
	return cmp.Or(a.Claimed.Compare(b.Claimed), strings.Compare(a.NodeID, b.NodeID))
}

func releaseVolume(t tx, c ReleaseVolume) (Result, error) {
	for _, v := range pointers[Volume](t.Txn, tableVolume, "name", c.Name) {
		if v.NodeID == c.NodeID && !v.Made {
			return Result{}, drop(t, tableVolume, v)
		}
	}
	return Result{}, nil
}

func putVolumes(t tx, c PutVolumes) (Result, error) {
	fresh, err := advance(t, c.NodeID, c.Seq, func(s *nodeSeq) *uint64 { return &s.Volumes })
	if err != nil || !fresh {
		return Result{}, err
	}
	known := map[string]*Volume{}
	for _, v := range pointers[Volume](t.Txn, tableVolume, "node", c.NodeID) {
		known[v.Name] = v
	}
	listed := map[string]bool{}
	for _, v := range c.Volumes {
		if v.Name == "" {
			continue
		}
		listed[v.Name] = true
		v.NodeID, v.Made, v.Claimed = c.NodeID, true, t.at
		if old := known[v.Name]; old != nil {
			v.Claimed = old.Claimed
		}
		if err := put(t, tableVolume, &v); err != nil {
			return Result{}, err
		}
	}
	gone := c.Gone
	for _, v := range known {
		if c.Full && v.Made && !listed[v.Name] {
			gone = append(gone, v.Name)
		}
	}
	for _, name := range gone {
		// A claim is not the node's to take back.
		if old := known[name]; old != nil && old.Made && !listed[name] {
			if err := drop(t, tableVolume, old); err != nil {
				return Result{}, err
			}
		}
	}
	return Result{Seq: c.Seq}, nil
}
