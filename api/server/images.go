package server

import (
	"net/http"

	"github.com/moby/moby/api/types/image"

	"github.com/distribution/reference"

	"github.com/shoal-engine/shoal/api"
)

func imageRoutes() []route {
	const one = "/images/{name...}"
	filters := param{"filters", "string", "JSON of keys and values"}
	platform := param{"platform", "string", "JSON of an OCI platform"}
	return []route{
		{method: "GET", path: "/images/json", id: "ImageList", doc: "List images",
			query: []param{{"all", "boolean", "also intermediate ones"}, {"shared-size", "boolean", "with shared sizes"},
				{"manifests", "boolean", "with manifests"}, {"identity", "boolean", "with identities"}, filters},
			status: 200, answer: []image.Summary{}, handle: listImages},
		{method: "POST", path: "/images/prune", id: "ImagePrune", doc: "Delete images nobody needs",
			query: []param{filters}, status: 200, answer: image.PruneReport{}, handle: pruneImages},
		{method: "GET", path: one + "/json", id: "ImageInspect", doc: "Inspect an image",
			query:  []param{{"manifests", "boolean", "with manifests"}, platform},
			status: 200, answer: image.InspectResponse{}, handle: inspectImage},
		{method: "GET", path: one + "/history", id: "ImageHistory", doc: "How an image came to be",
			query: []param{platform}, status: 200, answer: []image.HistoryResponseItem{}, handle: imageHistory},
		{method: "POST", path: one + "/tag", id: "ImageTag", doc: "Give an image a further name",
			query:  []param{{"repo", "string", "repository"}, {"tag", "string", "tag, latest if empty"}},
			status: 201, handle: tagImage},
		{method: "DELETE", path: one, id: "ImageDelete", doc: "Untag an image, or delete it",
			query:  []param{{"force", "boolean", "even if it is in use"}, {"noprune", "boolean", "keep parents"}},
			status: 200, answer: []image.DeleteResponse{}, handle: removeImage},
	}
}

func listImages(c *call) error {
	f, err := c.filters()
	if err != nil {
		return err
	}
	all, err := c.engine.ListImages(c.r.Context(), api.ImageListOptions{
		All: c.flag("all"), SharedSize: c.flag("shared-size"), Manifests: c.flag("manifests"),
		Identity: c.flag("identity"), Filters: f,
	})
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, c.oldImages(all))
}

func pruneImages(c *call) error {
	f, err := c.filters()
	if err != nil {
		return err
	}
	report, err := c.engine.PruneImages(c.r.Context(), f)
	if err != nil {
		return err
	}
	out := image.PruneReport{ImagesDeleted: []image.DeleteResponse{}, SpaceReclaimed: report.Reclaimed}
	for _, d := range report.Deleted {
		out.ImagesDeleted = append(out.ImagesDeleted, image.DeleteResponse{Deleted: d.Deleted, Untagged: d.Untagged})
	}
	return c.json(http.StatusOK, out)
}

func inspectImage(c *call) error {
	p, err := c.platform()
	if err != nil {
		return err
	}
	i, err := c.engine.InspectImage(c.r.Context(), c.arg, api.ImageInspectOptions{Manifests: c.flag("manifests"), Platform: p})
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, c.oldImageInspect(i))
}

func imageHistory(c *call) error {
	p, err := c.platform()
	if err != nil {
		return err
	}
	items, err := c.engine.ImageHistory(c.r.Context(), c.arg, p)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, orEmpty(items))
}

func tagImage(c *call) error {
	target, err := joinTag(c.query.Get("repo"), c.query.Get("tag"))
	if err != nil {
		return err
	}
	if err := c.engine.TagImage(c.r.Context(), c.arg, target); err != nil {
		return err
	}
	c.w.WriteHeader(http.StatusCreated)
	return nil
}

// joinTag makes a reference of the two parameters of which Docker's API has one
// for the repository and one for the tag or digest; either may say both.
func joinTag(repo, tag string) (string, error) {
	named, err := reference.ParseNormalizedNamed(repo)
	if err != nil {
		return "", api.InvalidArgument("invalid reference format: %q", repo)
	}
	switch {
	case tag == "":
		named = reference.TagNameOnly(named)
	case isDigest(tag):
		var d reference.Canonical
		if d, err = withDigest(named, tag); err == nil {
			named = d
		}
	default:
		named, err = reference.WithTag(reference.TrimNamed(named), tag)
	}
	if err != nil {
		return "", api.InvalidArgument("invalid tag %q: %w", tag, err)
	}
	return reference.FamiliarString(named), nil
}

func removeImage(c *call) error {
	o := api.ImageRemoveOptions{Force: c.flag("force"), NoPrune: c.flag("noprune")}
	done, err := c.engine.RemoveImage(c.r.Context(), c.arg, o)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, orEmpty(done))
}
