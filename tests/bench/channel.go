// The peer of bench/threads.c in Go, which run.sh builds if there is a Go:
//
//	channel PAIRS MILLISECONDS
//
// prints how many million 8-byte items a second go through one channel bounded
// at 1,024, from PAIRS goroutines to as many; or, if PAIRS is 0, the median of
// microseconds from one goroutine to another and back, over two channels.
package main

import (
	"fmt"
	"os"
	"sort"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

const (
	slots = 1024
	stop  = ^uint64(0)
)

func pairs(n int, span time.Duration) float64 {
	items := make(chan uint64, slots)
	var over int32
	var got uint64
	var all sync.WaitGroup
	start := time.Now()
	for i := 0; i < n; i++ {
		all.Add(2)
		go func() {
			for k := uint64(0); atomic.LoadInt32(&over) == 0; k++ {
				items <- k
			}
			items <- stop
			all.Done()
		}()
		go func() {
			k := uint64(0)
			for <-items != stop {
				k++
			}
			atomic.AddUint64(&got, k)
			all.Done()
		}()
	}
	time.Sleep(span)
	atomic.StoreInt32(&over, 1)
	all.Wait()
	return float64(got) / time.Since(start).Seconds() / 1e6
}

func ping(span time.Duration) float64 {
	there, back := make(chan uint64, slots), make(chan uint64, slots)
	var took []float64
	go func() {
		for item := range there {
			back <- item
		}
		close(back)
	}()
	for end := time.Now().Add(span); time.Now().Before(end); {
		start := time.Now()
		there <- 1
		<-back
		took = append(took, time.Since(start).Seconds())
	}
	close(there)
	<-back
	sort.Float64s(took)
	return took[len(took)/2] * 1e6
}

func main() {
	n, _ := strconv.Atoi(os.Args[1])
	ms, _ := strconv.Atoi(os.Args[2])
	span := time.Duration(ms) * time.Millisecond
	if n > 0 {
		fmt.Println(pairs(n, span))
	} else {
		fmt.Println(ping(span))
	}
}
