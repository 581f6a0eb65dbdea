package distribution

import (
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// maxPage is how many entries an answer has at most.
const maxPage = 10_000

// tags answers with the repository's tags.
func (c *call) tags() error {
	names, err := c.listed(c.r.Context())
	if err != nil {
		return err
	}
	if len(names) == 0 {
		return fault(http.StatusNotFound, codeNameUnknown, "the cluster has no repository %s", c.repo.path)
	}
	tags := make([]string, len(names))
	for i, n := range names {
		tags[i] = n.Name.Tag()
	}
	page, err := c.page(tags)
	if err != nil {
		return err
	}
	return c.json("application/json", struct {
		Name string   `json:"name"`
		Tags []string `json:"tags"`
	}{c.repo.path, page})
}

// catalog answers with the repositories that can be read here.
func (c *call) catalog() error {
	all, err := c.s.cfg.Names.List(c.r.Context())
	if err != nil {
		return err
	}
	var paths []string
	for _, n := range all {
		if p := c.s.pathOf(n.Name); p != "" {
			paths = append(paths, p)
		}
	}
	page, err := c.page(paths)
	if err != nil {
		return err
	}
	return c.json("application/json", struct {
		Repositories []string `json:"repositories"`
	}{page})
}

// page sorts a list, takes out what is there twice, and cuts what the client asks for:
// n entries after last. A Link leads to the rest.
func (c *call) page(list []string) ([]string, error) {
	// Not only by bytes: the specification wants case not to count.
	slices.SortFunc(list, func(a, b string) int {
		if o := strings.Compare(strings.ToLower(a), strings.ToLower(b)); o != 0 {
			return o
		}
		return strings.Compare(a, b)
	})
	list = slices.Compact(list)
	q := c.r.URL.Query()
	n := maxPage
	if text := q.Get("n"); text != "" {
		asked, err := strconv.ParseUint(text, 10, 31)
		if err != nil {
			return nil, fault(http.StatusBadRequest, codeUnsupported, "n=%q is no number of entries", clip(text))
		}
		n = min(n, int(asked))
	}
	if last := q.Get("last"); last != "" {
		i := slices.IndexFunc(list, func(s string) bool {
			o := strings.Compare(strings.ToLower(s), strings.ToLower(last))
			return o > 0 || o == 0 && s > last
		})
		if i < 0 {
			i = len(list)
		}
		list = list[i:]
	}
	out := []string{}
	out = append(out, list[:min(n, len(list))]...)
	if n > 0 && len(list) > n {
		next := url.Values{"n": {strconv.Itoa(n)}, "last": {out[n-1]}}
		if ns := q.Get("ns"); ns != "" {
			next.Set("ns", ns)
		}
		c.w.Header().Set("Link", "<"+c.r.URL.EscapedPath()+"?"+next.Encode()+`>; rel="next"`)
	}
	return out, nil
}
