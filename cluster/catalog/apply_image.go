package catalog

import "github.com/shoal-engine/shoal/api"

func putImages(t tx, c PutImages) (Result, error) {
	fresh, err := advance(t, c.NodeID, c.Seq, func(s *nodeSeq) *uint64 { return &s.Images })
	if err != nil || !fresh {
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
	return Result{Seq: c.Seq}, nil
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
