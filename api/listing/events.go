package listing

import (
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/events"

	"github.com/shoal-engine/shoal/api"
)

// prefixed are the actions that carry detail after a colon and are asked for
// without it.
var prefixed = []string{"exec_create", "exec_start", "health_status"}

// EventMatches says whether a filter of "docker events" admits a message. Keys it
// doesn't know narrow nothing, as with Docker.
func EventMatches(f api.Filters, m events.Message) bool {
	if !f.MatchFunc("event", func(v string) bool { return matchAction(v, string(m.Action)) }) ||
		!f.Match("type", string(m.Type)) ||
		!f.Match("scope", m.Scope) ||
		!f.MatchLabels("label", m.Actor.Attributes) ||
		!matchImageEvent(f, m) {
		return false
	}
	for _, t := range []events.Type{
		events.ContainerEventType, events.DaemonEventType, events.NetworkEventType, events.NodeEventType,
		events.PluginEventType, events.VolumeEventType, events.ServiceEventType, events.SecretEventType,
		events.ConfigEventType,
	} {
		if f.Has(string(t)) && (m.Type != t || !matchActor(f, string(t), m.Actor)) {
			return false
		}
	}
	return true
}

func matchAction(want, action string) bool {
	if want == action {
		return true
	}
	before, _, _ := strings.Cut(action, ":")
	return before == want && slices.Contains(prefixed, want)
}

func matchActor(f api.Filters, key string, a events.Actor) bool {
	return f.MatchFunc(key, func(v string) bool {
		return strings.HasPrefix(a.ID, v) || strings.HasPrefix(a.Attributes["name"], strings.TrimPrefix(v, "/"))
	})
}

// matchImageEvent is about events of an image and of what runs from it.
func matchImageEvent(f api.Filters, m events.Message) bool {
	if !f.Has("image") {
		return true
	}
	name := m.Actor.Attributes["image"]
	if m.Type == events.ImageEventType {
		name = m.Actor.Attributes["name"]
	}
	return f.Match("image", m.Actor.ID) || f.Match("image", name) ||
		f.Match("image", familiarName(m.Actor.ID)) || f.Match("image", familiarName(name))
}

// familiarName is the reference without its tag.
func familiarName(ref string) string {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return ref
	}
	return reference.FamiliarName(named)
}
