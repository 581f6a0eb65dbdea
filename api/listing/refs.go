package listing

import (
	"iter"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"

	"github.com/shoal-engine/shoal/api"
)

// nameChars is what Docker's own message calls the allowed characters.
const nameChars = "[a-zA-Z0-9][a-zA-Z0-9_.-]"

var validName = regexp.MustCompile(`^/?` + nameChars + `+$`)

// ValidateName fails with Docker's text unless name can name a container.
func ValidateName(name string) error {
	if !validName.MatchString(name) {
		return api.InvalidArgument("Invalid container name (%s), only %s are allowed", name, nameChars)
	}
	return nil
}

// NameTaken is the conflict of a name (without its slash) that id holds.
func NameTaken(name, id string) error {
	return api.Conflict("Conflict. The container name %q is already in use by container %q. "+
		"You have to remove (or rename) that container to be able to reuse that name.", "/"+name, id)
}

// IsNameTaken says whether an error is a NameTaken, maybe one that came over the wire.
func IsNameTaken(err error) bool {
	return errdefs.IsConflict(err) && strings.Contains(err.Error(), "is already in use by container")
}

// NoSuchContainer is Docker's error for a reference that names no container.
func NoSuchContainer(ref string) error { return api.NotFound("No such container: %s", ref) }

// NoSuchImage is Docker's error for a reference that names no image; it says the
// tag even where the reference left it out.
func NoSuchImage(ref string) error {
	if named, err := reference.ParseNormalizedNamed(ref); err == nil {
		ref = reference.FamiliarString(reference.TagNameOnly(named))
	}
	return api.NotFound("No such image: %s", ref)
}

// Resolve finds the ID that ref means among pairs of an ID and a name (with or
// without slash; a container of several names comes several times): a full ID
// first, then a name, then an unambiguous prefix of an ID.
func Resolve(ref string, candidates iter.Seq2[string, string]) (string, error) {
	if ref == "" {
		return "", api.InvalidArgument("invalid name or ID supplied: %q", ref)
	}
	name := strings.TrimPrefix(ref, "/")
	var named, prefixed string
	ambiguous := false
	for id, n := range candidates {
		switch {
		case id == ref:
			return id, nil
		case n != "" && strings.TrimPrefix(n, "/") == name:
			named = id
		case strings.HasPrefix(id, ref):
			ambiguous = ambiguous || prefixed != "" && prefixed != id
			prefixed = id
		}
	}
	switch {
	case named != "":
		return named, nil
	case ambiguous:
		return "", api.InvalidArgument("multiple IDs found with provided prefix: %s", ref)
	case prefixed != "":
		return prefixed, nil
	}
	return "", NoSuchContainer(ref)
}

// SameReference says whether two references mean the same tag or digest once
// Docker's defaults (docker.io/library, :latest) are filled in.
func SameReference(a, b string) bool {
	na, errA := reference.ParseDockerRef(a)
	nb, errB := reference.ParseDockerRef(b)
	return errA == nil && errB == nil && na.String() == nb.String()
}

// matchesID says whether ref is an image ID or a prefix of it, with or without
// its algorithm.
func matchesID(id, ref string) bool {
	if id == "" || ref == "" || ref == "sha256:" {
		return false
	}
	if strings.HasPrefix(ref, "sha256:") {
		return strings.HasPrefix(id, ref)
	}
	return hexPrefix.MatchString(ref) && strings.HasPrefix(strings.TrimPrefix(id, "sha256:"), ref)
}

// hexPrefix is what may be a shortened image ID; fewer digits than four are
// taken for a name only.
var hexPrefix = regexp.MustCompile(`^[0-9a-f]{4,64}$`)
