// Command webapp is the web server inside the demo's and the tests' containers.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "webapp:", err)
		os.Exit(1)
	}
}

func run() error {
	addr := flag.String("listen", ":80", "address to serve on")
	text := flag.String("text", os.Getenv("TEXT"), "what to answer with")
	look := flag.String("lookup", "", "print the addresses of this name and end")
	get := flag.String("get", "", "print what this URL answers and end")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	switch {
	case *look != "":
		return lookup(ctx, *look)
	case *get != "":
		return fetch(ctx, *get)
	}
	return serve(ctx, *addr, *text)
}

func lookup(ctx context.Context, name string) error {
	addrs, err := net.DefaultResolver.LookupHost(ctx, name)
	for _, a := range addrs {
		fmt.Println(a)
	}
	return err
}

func fetch(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	return res.Write(os.Stdout)
}

func serve(ctx context.Context, addr, text string) error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	srv := &http.Server{
		Addr:              addr,
		ReadHeaderTimeout: 5 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%s from %s to %s\n", text, host, r.RemoteAddr)
		}),
	}
	context.AfterFunc(ctx, func() { srv.Close() })
	fmt.Printf("serving on %s as %s\n", addr, host)
	if err := srv.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	fmt.Println("bye")
	return nil
}
