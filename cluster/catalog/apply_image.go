package catalog

import "github.com/shoal-engine/shoal/api"

func putImages(t tx, c PutImages) (Result, error) {
	if _, ok := first[Node](t.Txn, tableNode, "id", c.NodeID); !ok {
		return Result{}, api.NotFound("node %s not found", c.NodeID)
	}
	seq := nodeSeq{NodeID: c.NodeID}
	if s, ok := first[nodeSeq](t.Txn, tableSeq, "id", c.NodeID); ok {
		seq = *s
	}
	if c.Seq <= seq.Images {
		return Result{}, nil
	}
	seq.Images = c.Seq
	if err := put(t, tableSeq, &seq); err != nil {
		return Result{}, err
	}
	listed := map[string]bool{}
	for i := range c.Images {
		img := c.Images[i]
		img.NodeID = c.NodeID
		listed[img.Digest] = true
		if img.Digest == "" {
			continue
		}
		if err := put(t, tableImage, &img); err != nil {
			return Result{}, err
		}
		for _, name := range img.Summary.RepoTags {
			if err := passOn(t, name, img.Digest, img.Summary.ID, false); err != nil {
				return Result{}, err
			}
		}
	}
	lost := c.Gone
	if c.Full {
		for _, i := range pointers[Image](t.Txn, tableImage, "node", c.NodeID) {
			if !listed[i.Digest] {
				lost = append(lost, i.Digest)
			}
		}
	}
	for _, d := range lost {
		if err := drop(t, tableImage, &Image{NodeID: c.NodeID, Digest: d}); err != nil {
			return Result{}, err
		}
	}
	return Result{Seq: seq.Images}, nil
}

func setRef(t tx, c SetRef) (Result, error) {
	if c.Ref.Name == "" || c.Ref.Digest == "" {
		return Result{}, api.InvalidArgument("a reference needs a name and a digest")
	}
	id := ""
	if i, ok := first[Image](t.Txn, tableImage, "digest", c.Ref.Digest); ok {
		id = i.Summary.ID
	}
	if err := passOn(t, c.Ref.Name, c.Ref.Digest, id, true); err != nil {
		return Result{}, err
	}
	return Result{}, put(t, tableRef, &c.Ref)
}

func dropRef(t tx, c DropRef) (Result, error) {
	r, ok := first[Ref](t.Txn, tableRef, "id", c.Name)
	if !ok || c.Digest != "" && c.Digest != r.Digest {
		return Result{}, nil
	}
	return Result{}, drop(t, tableRef, r)
}
