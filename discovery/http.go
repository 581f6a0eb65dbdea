package discovery

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/cluster/catalog"
)

// maxWait bounds one blocking look-up; who wants to wait longer asks again.
const maxWait = time.Hour

// Handler serves look-ups over HTTP:
//
//	GET /shoal/v1/resolve?name=db&tag=tier=gold&port=80/tcp&wait=30s
//	    answers a JSON list of endpoints as soon as there is one, at once without
//	    wait; 404 with the reason if there is none in time.
//	GET /shoal/v1/watch?name=…&tag=…&port=…
//	    streams changes as JSON lines: a snapshot, then whatever differs.
//	GET /shoal/v1/catalog?after=INDEX&wait=30s
//	    answers everything the cluster knows; with wait, once there is something
//	    newer than the index, or when the time is over.
//
// tag may come more than once and all must hold. Errors are {"message":"…"} with
// the status of their class.
func Handler(r catalog.Reader, log *slog.Logger) http.Handler {
	h := &handler{reader: r, log: log}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /shoal/v1/resolve", h.answer(h.resolve))
	mux.HandleFunc("GET /shoal/v1/watch", h.answer(h.watch))
	mux.HandleFunc("GET /shoal/v1/catalog", h.answer(h.catalog))
	return mux
}

type handler struct {
	reader catalog.Reader
	log    *slog.Logger
}

// answer writes what a route returns as an error, in the one place for it.
func (h *handler) answer(route func(http.ResponseWriter, *http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		err := route(w, r)
		if err == nil || r.Context().Err() != nil {
			return
		}
		if err := writeJSON(w, api.Status(err), map[string]string{"message": err.Error()}); err != nil {
			h.log.Debug("answer look-up", "path", r.URL.Path, "err", err)
		}
	}
}

func (h *handler) resolve(w http.ResponseWriter, r *http.Request) error {
	q, err := parseQuery(r)
	if err != nil {
		return err
	}
	if q.Name == "" && len(q.Tags) == 0 {
		return api.InvalidArgument("name or tag is required")
	}
	wait, err := parseWait(r.URL.Query().Get("wait"))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), wait)
	defer cancel()
	es, err := Resolve(ctx, h.reader, q)
	if errors.Is(err, context.DeadlineExceeded) {
		return api.NotFound("%s", missing(h.reader.View(), q))
	}
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, es)
}

func parseQuery(r *http.Request) (Query, error) {
	v := r.URL.Query()
	port, proto, err := ParsePort(v.Get("port"))
	if err != nil {
		return Query{}, err
	}
	return Query{Name: strings.TrimPrefix(v.Get("name"), "/"), Tags: v["tag"], Port: port, Proto: proto}, nil
}

func parseWait(s string) (time.Duration, error) {
	if s == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 || d > maxWait {
		return 0, api.InvalidArgument("invalid wait %q: want a duration up to %s, such as 30s", s, maxWait)
	}
	return d, nil
}

func (h *handler) watch(w http.ResponseWriter, r *http.Request) error {
	q, err := parseQuery(r)
	if err != nil {
		return err
	}
	s, err := Watch(r.Context(), h.reader, q)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/jsonl")
	enc, flush := json.NewEncoder(w), http.NewResponseController(w)
	for c, err := range api.All(s) {
		if err == nil {
			err = enc.Encode(c)
		}
		if err == nil {
			err = flush.Flush()
		}
		if err != nil {
			// The status is out: all that is left to say is the end of the stream.
			h.log.Debug("watch ended", "query", q.String(), "err", err)
			return nil
		}
	}
	return nil
}

// snapshot is the whole catalog as GET catalog shows it.
type snapshot struct {
	Index      uint64              `json:"index"`
	Nodes      []catalog.Node      `json:"nodes"`
	Containers []catalog.Container `json:"containers"`
	Images     []catalog.Image     `json:"images"`
}

func (h *handler) catalog(w http.ResponseWriter, r *http.Request) error {
	wait, err := parseWait(r.URL.Query().Get("wait"))
	if err != nil {
		return err
	}
	if wait > 0 {
		after, err := strconv.ParseUint(r.URL.Query().Get("after"), 10, 64)
		if err != nil {
			return api.InvalidArgument("invalid after %q: want the index of a catalog seen before", r.URL.Query().Get("after"))
		}
		ctx, cancel := context.WithTimeout(r.Context(), wait)
		defer cancel()
		if err := h.reader.Wait(ctx, after); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
	}
	v := h.reader.View()
	return writeJSON(w, http.StatusOK, snapshot{v.Index(), v.Nodes(), v.Containers(), v.Images()})
}

func writeJSON(w http.ResponseWriter, status int, v any) error {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	return json.NewEncoder(w).Encode(v)
}
