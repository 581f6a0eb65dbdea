package listing

import "math/rand/v2"

var adjectives = []string{
	"agile", "amber", "ample", "avid", "bold", "brisk", "calm", "candid", "civil", "clear", "crisp", "deft",
	"dapper", "eager", "early", "exact", "fair", "fleet", "fluent", "frank", "gentle", "glad", "grand", "hardy",
	"honest", "humble", "ideal", "jolly", "keen", "kind", "lively", "lucid", "lunar", "mellow", "merry", "mild",
	"modest", "nimble", "noble", "open", "patient", "placid", "plain", "polite", "prime", "proud", "quick", "quiet",
	"ready", "robust", "round", "serene", "sharp", "silver", "sincere", "smooth", "solid", "spry", "steady", "subtle",
	"sunny", "swift", "tidal", "tidy", "trusty", "upbeat", "useful", "valiant", "vivid", "warm", "witty", "zesty",
}

// surnames are people who studied the sea, its fishes, or how many things move as one.
var surnames = []string{
	"agassiz", "anning", "beebe", "bigelow", "bjerknes", "boyd", "buckland", "carson", "challenger", "clark",
	"cousteau", "cuvier", "dahl", "darwin", "dittmar", "drake", "earle", "ekman", "ellis", "euler",
	"ewing", "forbes", "forel", "gunther", "haeckel", "hardy", "hass", "helland", "hensen", "hjort",
	"humboldt", "huxley", "jordan", "kelvin", "kraus", "lamport", "lorenz", "mann", "marsigli", "maury",
	"merian", "moseley", "murray", "nansen", "navier", "neumann", "okubo", "partridge", "piccard", "reynolds",
	"ricketts", "rossby", "sars", "schmidt", "scoresby", "shannon", "somerville", "stokes", "sverdrup", "tharp",
	"thomson", "thorne", "turing", "tyson", "wegener", "wiener", "wilkes", "wright", "wust", "young",
}

// RandomName makes a name for a container nobody named, such as brisk_carson. It
// need not be free: a caller tries again, with taken true for a longer one.
func RandomName(r *rand.Rand, taken bool) string {
	name := adjectives[r.IntN(len(adjectives))] + "_" + surnames[r.IntN(len(surnames))]
	if taken {
		name += string(rune('0' + r.IntN(10)))
	}
	return name
}
