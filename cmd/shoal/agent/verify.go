package agent

import (
	"encoding/json"
	"net/http"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/node/image"
)

// own serves what is Shoal's own and about this node alone, for its socket.
func (a *Agent) own() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /shoal/v1/images/verify", a.serveVerify)
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { refuse(w, api.NotFound("page not found")) })
	return mux
}

// serveVerify answers with a line of JSON for each thing that was looked at.
func (a *Agent) serveVerify(w http.ResponseWriter, r *http.Request) {
	s, err := a.images.Verify(r.Context(), r.URL.Query()["ref"])
	if err != nil {
		refuse(w, err)
		return
	}
	defer s.Close()
	w.Header().Set("Content-Type", "application/x-ndjson")
	out, e := http.NewResponseController(w), json.NewEncoder(w)
	e.SetEscapeHTML(false)
	for c, err := range api.All(s) {
		if err != nil {
			c = image.Checked{State: image.CheckFailed, Why: err.Error()}
		}
		if e.Encode(c) != nil || out.Flush() != nil {
			return // the caller is gone
		}
	}
}

func refuse(w http.ResponseWriter, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(api.Status(err))
	_ = json.NewEncoder(w).Encode(map[string]string{"message": err.Error()}) // the caller may be gone
}
