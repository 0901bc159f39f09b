// SPDX-License-Identifier: Apache-2.0

package pcapng

import (
	"bytes"
	"container/list"
	"iter"
	"slices"
	"strings"
)

const (
	mostKnown   = 4096 // keys of a recent
	mostNames   = 8    // of one address
	longestName = 255  // bytes; one of DNS has 253
)

// rememberNames keeps names, and returns those that are new.
func (w *Writer) rememberNames(b *Names) *Names {
	fresh := &Names{}
	if w.classic != nil {
		return fresh
	}
	for _, r := range b.Records {
		r = Name{r.Address.Unmap().WithZone(""), tidy(r.Names)}
		old, known := w.names.get(r.Address)
		switch {
		case !r.Address.IsValid():
		case len(r.Names) == 0:
			w.names.forget(r.Address)
		default:
			w.names.put(r.Address, r.Names)
			if !known || !slices.Equal(old, r.Names) {
				fresh.Records = append(fresh.Records, r)
			}
		}
	}
	return fresh
}

// tidy returns a copy of names as they are written: what follows a zero byte would be another name.
func tidy(names []string) (tidied []string) {
	for _, n := range names {
		n = limit(strings.ReplaceAll(n, "\x00", "\uFFFD"), longestName)
		if n != "" && len(tidied) < mostNames {
			tidied = append(tidied, strings.Clone(n))
		}
	}
	return tidied
}

// rememberSecrets keeps secrets, and returns them if they are new.
func (w *Writer) rememberSecrets(b *Secrets) *Secrets {
	if w.classic != nil {
		return &Secrets{}
	}
	if len(b.Data) == 0 {
		w.secrets.forget(b.Key)
		return b
	}
	kept := Secrets{strings.Clone(b.Key), b.Type, bytes.Clone(b.Data[:min(len(b.Data), maxData)])}
	old, known := w.secrets.get(b.Key)
	w.secrets.put(kept.Key, kept)
	if known && old.Type == kept.Type && bytes.Equal(old.Data, kept.Data) {
		return &Secrets{}
	}
	return &kept
}

// recall queues what is known of addresses and connections.
func (w *Writer) recall() {
	var records []Name
	for address, names := range w.names.all() {
		records = append(records, Name{address, names})
	}
	w.buf = appendNames(w.buf, records)
	for _, s := range w.secrets.all() {
		w.buf = appendSecrets(w.buf, &s)
	}
}

// recent is the values of the keys that were put last, mostKnown at most. The zero value is ready to use.
type recent[K comparable, V any] struct {
	order list.List // of *entry[K, V]: the one that was put last is at the back
	of    map[K]*list.Element
}

type entry[K comparable, V any] struct {
	key   K
	value V
}

func (r *recent[K, V]) put(key K, value V) {
	r.forget(key)
	if len(r.of) == mostKnown {
		r.forget(r.order.Front().Value.(*entry[K, V]).key)
	}
	if r.of == nil {
		r.of = map[K]*list.Element{}
	}
	r.of[key] = r.order.PushBack(&entry[K, V]{key, value})
}

func (r *recent[K, V]) get(key K) (value V, ok bool) {
	e, ok := r.of[key]
	if ok {
		value = e.Value.(*entry[K, V]).value
	}
	return value, ok
}

func (r *recent[K, V]) forget(key K) {
	if e, ok := r.of[key]; ok {
		r.order.Remove(e)
		delete(r.of, key)
	}
}

// all returns the keys and values in the order in which they were put.
func (r *recent[K, V]) all() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		for e := r.order.Front(); e != nil; e = e.Next() {
			of := e.Value.(*entry[K, V])
			if !yield(of.key, of.value) {
				return
			}
		}
	}
}

// appendNames appends name resolution blocks (section 4.5) of about 64 KiB at most, or none.
func appendNames(b []byte, records []Name) []byte {
	for len(records) > 0 {
		var start int
		b, start = begin(b, blockNames)
		for len(records) > 0 && len(b)-start < flushAt {
			b = appendName(b, records[0])
			records = records[1:]
		}
		b = le.AppendUint32(b, nrbEnd)
		b = end(b, start, len(b))
	}
	return b
}

// appendName appends a record of tidy names.
func appendName(b []byte, r Name) []byte {
	kind, value := uint16(nrbIPv6), r.Address.AsSlice()
	if r.Address.Is4() {
		kind = nrbIPv4
	}
	for _, name := range r.Names {
		value = append(append(value, name...), 0)
	}
	return appendOption(b, kind, string(value)) // records are built like options
}

// appendSecrets appends a decryption secrets block (section 4.7), or nothing if there are none.
func appendSecrets(b []byte, s *Secrets) []byte {
	if len(s.Data) == 0 {
		return b
	}
	b, start := begin(b, blockSecrets)
	b = le.AppendUint32(b, uint32(s.Type))
	b = le.AppendUint32(b, uint32(len(s.Data)))
	b = pad(append(b, s.Data...))
	return end(b, start, len(b))
}
