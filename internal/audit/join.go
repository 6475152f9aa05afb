package audit

import "context"

// source gives values in the order of their keys, until each returns an error.
type source[T any] func(ctx context.Context, each func(T) error) error

// ahead is how many values of one source are read before the other one is. It bounds memory.
const ahead = 4096

// join reads two sources at the same time and calls each once a key, in order, with the value of each side; nil: it has none. When
// it returns, nothing of either source runs any more.
func join[T any](ctx context.Context, left, right source[T], compare func(a, b *T) int, each func(left, right *T) error) error {
	ctx, stop := context.WithCancel(ctx)
	lefts, rights := start(ctx, left), start(ctx, right)
	defer func() {
		stop()
		lefts.drain()
		rights.drain()
	}()
	l, err := lefts.next()
	if err != nil {
		return err
	}
	r, err := rights.next()
	if err != nil {
		return err
	}
	for l != nil || r != nil {
		order := 0
		switch {
		case l == nil:
			order = 1
		case r == nil:
			order = -1
		default:
			order = compare(l, r)
		}
		haveL, haveR := l, r
		if order > 0 {
			haveL = nil
		}
		if order < 0 {
			haveR = nil
		}
		if err := each(haveL, haveR); err != nil {
			return err
		}
		if order <= 0 {
			if l, err = lefts.next(); err != nil {
				return err
			}
		}
		if order >= 0 {
			if r, err = rights.next(); err != nil {
				return err
			}
		}
	}
	return nil
}

// flow is a source that runs.
type flow[T any] struct {
	values chan T
	err    error // set before values is closed
}

func start[T any](ctx context.Context, from source[T]) *flow[T] {
	f := &flow[T]{values: make(chan T, ahead)}
	go func() {
		defer close(f.values)
		f.err = from(ctx, func(value T) error {
			select {
			case f.values <- value:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	return f
}

// next returns the next value; nil: there is none.
func (f *flow[T]) next() (*T, error) {
	value, ok := <-f.values
	if !ok {
		return nil, f.err
	}
	return &value, nil
}

func (f *flow[T]) drain() {
	for range f.values {
		continue // only the end matters
	}
}
