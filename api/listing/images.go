package listing

import (
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"

	"github.com/shoal-engine/shoal/api"
)

var imageFilters = []string{"before", "dangling", "label", "label!", "reference", "since", "until"}

// Images is what "docker images" shows of all, newest first. With a filter by
// reference only the tags and digests that match are left in the summaries.
// Errors are InvalidArgument for a filter that makes no sense and NotFound for a
// before or since that names no image. all itself is left untouched.
func Images(all []image.Summary, o api.ImageListOptions, now time.Time) ([]image.Summary, error) {
	f := o.Filters
	if err := f.Only(imageFilters...); err != nil {
		return nil, err
	}
	dangling, err := boolFilter(f, "dangling")
	if err != nil {
		return nil, err
	}
	first, last, err := imageAges(all, f, now)
	if err != nil {
		return nil, err
	}
	found := []image.Summary{}
	for _, s := range all {
		if dangling != nil && *dangling != (len(s.RepoTags) == 0) ||
			s.Created <= first || s.Created >= last || !matchLabels(f, s.Labels) {
			continue
		}
		if f.Has("reference") {
			if s.RepoTags, err = matching(s.RepoTags, f["reference"]); err != nil {
				return nil, err
			}
			if s.RepoDigests, err = matching(s.RepoDigests, f["reference"]); err != nil {
				return nil, err
			}
			if len(s.RepoTags)+len(s.RepoDigests) == 0 {
				continue
			}
		}
		found = append(found, s)
	}
	slices.SortStableFunc(found, func(a, b image.Summary) int { return int(b.Created - a.Created) })
	return found, nil
}

// imageAges are the bounds, exclusive, that since, before and until set to when
// an image was made.
func imageAges(all []image.Summary, f api.Filters, now time.Time) (after, before int64, err error) {
	after, before = -1<<62, 1<<62
	for _, v := range f["since"] {
		s, err := findImage(all, v)
		if err != nil {
			return 0, 0, err
		}
		after = max(after, s.Created)
	}
	for _, v := range f["before"] {
		s, err := findImage(all, v)
		if err != nil {
			return 0, 0, err
		}
		before = min(before, s.Created)
	}
	for _, v := range f["until"] {
		t, err := Time(v, now)
		if err != nil {
			return 0, 0, err
		}
		before = min(before, t.Unix())
	}
	return after, before, nil
}

func findImage(all []image.Summary, ref string) (image.Summary, error) {
	for _, s := range all {
		if slices.ContainsFunc(append(slices.Clone(s.RepoTags), s.RepoDigests...), func(t string) bool {
			return SameReference(t, ref)
		}) {
			return s, nil
		}
	}
	for _, s := range all {
		if matchesID(s.ID, ref) {
			return s, nil
		}
	}
	return image.Summary{}, NoSuchImage(ref)
}

// matching are the references that one of the glob patterns means.
func matching(refs, globs []string) ([]string, error) {
	left := []string{}
	for _, r := range refs {
		named, err := reference.ParseNormalizedNamed(r)
		if err != nil {
			continue
		}
		for _, g := range globs {
			ok, err := reference.FamiliarMatch(g, named)
			if err != nil {
				return nil, api.InvalidArgument("invalid filter 'reference=%s'", g)
			}
			if ok {
				left = append(left, r)
				break
			}
		}
	}
	return left, nil
}

// matchLabels is label and label!, as prunes have them.
func matchLabels(f api.Filters, labels map[string]string) bool {
	if !f.MatchLabels("label", labels) {
		return false
	}
	for _, v := range f["label!"] {
		if (api.Filters{"label": {v}}).MatchLabels("label", labels) {
			return false
		}
	}
	return true
}

// PrunableContainers are the containers a prune removes: those without process
// that label, label! and until admit.
func PrunableContainers(all []container.Summary, f api.Filters, now time.Time) ([]container.Summary, error) {
	if err := f.Only("label", "label!", "until"); err != nil {
		return nil, err
	}
	until, err := untilFilter(f, now)
	if err != nil {
		return nil, err
	}
	found := []container.Summary{}
	for _, c := range all {
		if !Running(c.State) && c.State != container.StateRemoving &&
			(until.IsZero() || c.Created < until.Unix()) && matchLabels(f, c.Labels) {
			found = append(found, c)
		}
	}
	return found, nil
}

// PrunableImages are the images a prune considers: untagged ones, with
// dangling=false tagged ones as well, that label, label! and until admit. Which
// of them a container needs, only the caller knows.
func PrunableImages(all []image.Summary, f api.Filters, now time.Time) ([]image.Summary, error) {
	if err := f.Only("dangling", "label", "label!", "until"); err != nil {
		return nil, err
	}
	dangling, err := boolFilter(f, "dangling")
	if err != nil {
		return nil, err
	}
	until, err := untilFilter(f, now)
	if err != nil {
		return nil, err
	}
	found := []image.Summary{}
	for _, s := range all {
		if (len(s.RepoTags) == 0 || dangling != nil && !*dangling) &&
			(until.IsZero() || s.Created < until.Unix()) && matchLabels(f, s.Labels) {
			found = append(found, s)
		}
	}
	return found, nil
}

func untilFilter(f api.Filters, now time.Time) (time.Time, error) {
	switch vs := f["until"]; len(vs) {
	case 0:
		return time.Time{}, nil
	case 1:
		return Time(vs[0], now)
	default:
		return time.Time{}, api.InvalidArgument("more than one until filter specified: %s", strings.Join(vs, ", "))
	}
}
