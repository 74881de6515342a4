// The peer of bench/echo.c in Go, which run.sh builds if there is a Go: serves
// the listening socket that is its descriptor 3, on one CPU.
package main

import (
	"net"
	"os"
	"runtime"
)

func echo(c net.Conn) {
	b := make([]byte, 1024)
	for {
		n, err := c.Read(b)
		if err == nil {
			_, err = c.Write(b[:n])
		}
		if err != nil {
			c.Close()
			return
		}
	}
}

func main() {
	runtime.GOMAXPROCS(1)
	l, err := net.FileListener(os.NewFile(3, ""))
	if err != nil {
		panic(err)
	}
	for {
		if c, err := l.Accept(); err == nil {
			go echo(c)
		}
	}
}
