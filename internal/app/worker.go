package app

import (
	"context"
	"sync"
	"time"

	"zimage/internal/engine"
	"zimage/internal/generate"
	"zimage/internal/jobs"
)

// housekeepingSlots is how many jobs of the housekeeping lane a worker runs at
// once.
const housekeepingSlots = 4

// RunWorker serves this process's lanes until ctx ends, then drains: it
// finishes, within the shutdown time or until abort is closed, or releases.
func (a *App) RunWorker(ctx context.Context, abort <-chan struct{}) error {
	fleet, err := engine.NewFleet(a.engines, a.lanes(), a.open, engine.FleetOptions{Clock: a.clock, Log: a.log})
	if err != nil {
		return err
	}
	var lanes []jobs.Lane
	for _, name := range a.lanes() {
		if name == jobs.Housekeeping {
			lanes = append(lanes, jobs.Lane{Name: name, Slots: jobs.NewFixed(housekeepingSlots)})
			continue
		}
		lane := jobs.Lane{Name: name, Slots: generate.LaneSlots{Fleet: fleet, Lane: name}, CheckInterval: 10 * time.Millisecond}
		if a.embedded() {
			lane.CheckInterval = 250 * time.Millisecond // the wake within the process is quicker anyway
		}
		lanes = append(lanes, lane)
	}
	w := a.queue.NewWorker(lanes, a.config.ShutdownTimeout)

	// Beside the worker, also while it drains.
	beside, stop := context.WithCancel(context.WithoutCancel(ctx))
	var work sync.WaitGroup
	work.Go(func() { fleet.Run(beside) })
	work.Go(func() { a.Generate.ReportEngines(beside, w.ID(), fleet) })
	defer work.Wait()
	defer stop()
	return w.Run(ctx, abort)
}

// RunScheduler keeps queue and schedules in order until ctx ends.
func (a *App) RunScheduler(ctx context.Context) error {
	return a.queue.NewScheduler(generate.Schedules()...).Run(ctx)
}
