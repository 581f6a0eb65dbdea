package distribution

import (
	"net/http"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
)

// kind is what a path asks for.
type kind int

const (
	kindBase kind = iota
	kindCatalog
	kindTags      // <name>/tags/list
	kindBlob      // <name>/blobs/<digest>
	kindUploads   // <name>/blobs/uploads/
	kindUpload    // <name>/blobs/uploads/<id>
	kindManifest  // <name>/manifests/<tag or digest>
	kindReferrers // <name>/referrers/<digest>
)

// route is a path taken apart.
type route struct {
	kind kind
	name string // of the repository, not checked yet
	last string // tag, digest or ID
}

var errNoPath = &problem{http.StatusNotFound, codeUnsupported, "no such path"} //nolint:gochecknoglobals // a constant in all but name

// parsePath takes a decoded path apart, from its end: a repository's name may contain
// any of the fixed words.
func parsePath(path string) (route, error) {
	rest, ok := strings.CutPrefix(path, "/v2")
	if !ok || rest != "" && rest[0] != '/' {
		return route{}, errNoPath
	}
	switch rest {
	case "", "/":
		return route{kind: kindBase}, nil
	case "/_catalog":
		return route{kind: kindCatalog}, nil
	}
	parts := strings.Split(strings.TrimPrefix(rest, "/"), "/")
	n := len(parts)
	name := func(tail int) string { return strings.Join(parts[:n-tail], "/") }
	switch {
	case n > 2 && parts[n-2] == "tags" && parts[n-1] == "list":
		return route{kindTags, name(2), ""}, nil
	case n > 3 && parts[n-3] == "blobs" && parts[n-2] == "uploads" && parts[n-1] != "":
		return route{kindUpload, name(3), parts[n-1]}, nil
	case n > 3 && parts[n-3] == "blobs" && parts[n-2] == "uploads":
		return route{kindUploads, name(3), ""}, nil
	case n > 2 && parts[n-2] == "blobs" && parts[n-1] == "uploads":
		return route{kindUploads, name(2), ""}, nil
	case n > 2 && parts[n-2] == "blobs":
		return route{kindBlob, name(2), parts[n-1]}, nil
	case n > 2 && parts[n-2] == "manifests":
		return route{kindManifest, name(2), parts[n-1]}, nil
	case n > 2 && parts[n-2] == "referrers":
		return route{kindReferrers, name(2), parts[n-1]}, nil
	}
	return route{}, errNoPath
}

// parseDigest reads a digest that a client wrote.
func parseDigest(text string) (digest.Digest, error) {
	d, err := digest.Parse(text)
	if err != nil {
		return "", fault(http.StatusBadRequest, codeDigestInvalid, "invalid digest %q: %v", clip(text), err)
	}
	if d.Algorithm() != digest.SHA256 {
		return "", fault(http.StatusBadRequest, codeDigestInvalid, "invalid digest %q: only sha256 is kept", clip(text))
	}
	return d, nil
}

// askedDigest is parseDigest of what a client wants to read: what is not kept is only
// not found.
func askedDigest(text, code string) (digest.Digest, error) {
	if d, err := digest.Parse(text); err == nil && d.Algorithm() != digest.SHA256 {
		return "", fault(http.StatusNotFound, code, "%s is not here: only sha256 is kept", clip(text))
	}
	return parseDigest(text)
}

// parseRange reads the Content-Range of an upload: first and last byte, both counted
// from 0. "bytes " before and "/total" behind are borne.
func parseRange(text string) (first, last int64, err error) {
	body, _, _ := strings.Cut(strings.TrimPrefix(text, "bytes "), "/")
	a, b, ok := strings.Cut(body, "-")
	if ok {
		first, err = parseOffset(a)
	}
	if ok && err == nil {
		last, err = parseOffset(b)
	}
	if !ok || err != nil || last < first {
		return 0, 0, fault(http.StatusBadRequest, codeUploadInvalid, "invalid Content-Range %q: want <first byte>-<last byte>", clip(text))
	}
	return first, last, nil
}

// maxOffset leaves room for sums.
const maxOffset = 1 << 60

func parseOffset(text string) (int64, error) {
	n, err := strconv.ParseUint(text, 10, 62)
	if err == nil && (n > maxOffset || text[0] == '+') {
		err = strconv.ErrRange
	}
	return int64(n), err //nolint:gosec // 62 bits fit
}

// clip keeps what a client sent short enough for a message.
func clip(s string) string {
	if len(s) > 128 {
		return s[:128] + "…"
	}
	return s
}
