package server

import (
	"log/slog"
	"net/http"
)

// Wrap makes a server of any handler, with the shutdown of NewServer: for
// programs whose engine behind a socket changes while they run.
func Wrap(h http.Handler, log *slog.Logger) *Server {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Server{handler: h, log: log}
}
