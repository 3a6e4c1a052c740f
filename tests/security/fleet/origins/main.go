// Origins in Go, each on a port of its own. Prints `NAME: PORT` for each, then `ready`.
package main

import (
	"fmt"
	"net"
	"net/http"
	"net/url"
	"path"
	"strings"
)

const reached = "the event handler was reached"

func isEvent(read string) bool {
	return read == "/v1/event" || strings.HasPrefix(read, "/v1/event/")
}

func reader(read func(*http.Request) string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if isEvent(read(r)) {
			fmt.Fprint(w, reached)
		}
	})
}

func serve(name string, handler http.Handler) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Printf("Go, %s: %d\n", name, listener.Addr().(*net.TCPAddr).Port)
	go http.Serve(listener, handler)
}

func main() {
	event := func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, reached) }
	mux := http.NewServeMux()
	mux.HandleFunc("/v1/event", event)
	mux.HandleFunc("/v1/event/", event)
	serve("ServeMux", mux)
	serve("URL.Path", reader(func(r *http.Request) string { return r.URL.Path }))
	serve("path.Clean", reader(func(r *http.Request) string { return path.Clean(r.URL.Path) }))
	serve("path.Clean of EscapedPath", reader(func(r *http.Request) string {
		return path.Clean(r.URL.EscapedPath())
	}))
	serve("path.Clean, decoded once more", reader(func(r *http.Request) string {
		decoded, _ := url.PathUnescape(path.Clean(r.URL.Path))
		return path.Clean(decoded)
	}))
	serve("url.Parse of the target", reader(func(r *http.Request) string {
		parsed, err := url.Parse(r.RequestURI)
		if err != nil {
			return ""
		}
		return parsed.Path
	}))
	fmt.Println("ready")
	select {}
}
