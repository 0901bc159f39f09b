// SPDX-License-Identifier: Apache-2.0

// Package control lets another process ask a running agent for something: requests and answers in lines of JSON, over a unix
// socket.
package control

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// What can be asked for: Request.Do.
const (
	Status = "status" // what is captured, and how that goes
	Stop   = "stop"   // end; the connection stays open as long as the process lives
	Rotate = "rotate" // end the file, and begin another one
	Stats  = "stats"  // the counters
	Flush  = "flush"  // write what was captured so far
	Filter = "filter" // capture by Expression from now on
)

// MostExpression is how many bytes an expression has at most, and mostLine a request or an answer.
const (
	MostExpression = 64 << 10
	mostLine       = 256 << 10
)

// Request is one line to the agent.
type Request struct {
	Do         string  `json:"do"`
	Expression *string `json:"expression,omitempty"` // of Filter, and there only; "" is every packet
}

// Answer is one line from the agent.
type Answer struct {
	Error  string          `json:"error,omitempty"`  // in one line; "": it was done
	Code   int             `json:"code,omitempty"`   // the exit code that goes with Error
	Result json.RawMessage `json:"result,omitempty"` // as README describes it
}

// Parse reads a request.
func Parse(line []byte) (r Request, err error) {
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return r, fmt.Errorf("not a request: %w", err)
	}
	if d.More() {
		return r, errors.New("not a request: more than one in a line")
	}
	switch r.Do {
	case Status, Stop, Rotate, Stats, Flush:
		if r.Expression != nil {
			return r, fmt.Errorf("%s takes no expression", r.Do)
		}
	case Filter:
		switch {
		case r.Expression == nil:
			return r, errors.New("filter needs an expression")
		case len(*r.Expression) > MostExpression:
			return r, fmt.Errorf("an expression has at most %d bytes", MostExpression)
		case strings.ContainsRune(*r.Expression, 0):
			return r, errors.New("an expression has no NUL")
		}
	default:
		return r, fmt.Errorf("nothing is called %.40q", r.Do)
	}
	return r, nil
}
