// An origin in Go that says in a header what it was asked. Prints its name and port.
package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
)

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Printf("Go: %d\nready\n", listener.Addr().(*net.TCPAddr).Port)
	handler := http.HandlerFunc(func(writer http.ResponseWriter, request *http.Request) {
		io.Copy(io.Discard, request.Body)
		writer.Header().Set("X-Asked", request.Method+" "+request.RequestURI)
		io.WriteString(writer, "ok")
	})
	panic(http.Serve(listener, handler))
}
