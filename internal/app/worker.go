package app

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"zimage/internal/engine"
	"zimage/internal/generate"
	"zimage/internal/jobs"
	"zimage/internal/mail"
	"zimage/internal/privacy"
	"zimage/internal/webhook"
)

// housekeepingSlots is how many jobs of the housekeeping lane a worker runs at
// once. Five may rest between their pieces, those of four tables and the sweep of what has
// expired: the others are for whoever waits.
const housekeepingSlots = 8

// exportSlots is how many exports a worker makes at once: each keeps the database,
// the object store and a core busy.
const exportSlots = 1

// mailSlots is how many mails a worker hands over at once.
const mailSlots = 4

// runWorker serves this process's lanes until ctx ends, then drains: it
// finishes, within the shutdown time or until abort is closed, or releases.
func (a *App) runWorker(ctx context.Context, abort <-chan struct{}) error {
	if a.awaitReplay(ctx) != nil {
		return nil // stopped before there was anything to do
	}
	fleet, err := engine.NewFleet(a.engines, a.lanes(), a.open, engine.FleetOptions{Clock: a.clock, Log: a.log})
	if err != nil {
		return err
	}
	var lanes []jobs.Lane
	for _, name := range a.lanes() {
		if name == jobs.Housekeeping {
			lanes = append(lanes, jobs.Lane{Name: name, Slots: jobs.NewFixed(housekeepingSlots)},
				jobs.Lane{Name: mail.Lane, Slots: jobs.NewFixed(mailSlots)},
				jobs.Lane{Name: privacy.ExportLane, Slots: jobs.NewFixed(exportSlots)},
				jobs.Lane{Name: webhook.Lane, Slots: jobs.NewFixed(webhook.Slots), PerParty: webhook.SlotsPerEndpoint, PerOwner: webhook.SlotsPerOwner})
			continue
		}
		lane := jobs.Lane{Name: name, Slots: generate.LaneSlots{Fleet: fleet, Lane: name}, CheckInterval: 10 * time.Millisecond}
		if a.inside {
			// The wake within the process is quicker anyway, and 10 ms would cost a
			// third of a core here.
			lane.CheckInterval = 250 * time.Millisecond
		}
		lanes = append(lanes, lane)
	}
	w := a.queue.NewWorker(lanes, a.config.ShutdownTimeout)

	// Beside the worker, also while it drains.
	beside, stop := context.WithCancel(context.WithoutCancel(ctx))
	var work sync.WaitGroup
	work.Go(func() { fleet.Run(beside) })
	work.Go(func() { a.Generate.ReportEngines(beside, w.ID(), fleet) })
	if slices.Contains(a.lanes(), jobs.Housekeeping) {
		work.Go(func() { a.mail.Tend(beside) })
	}
	defer work.Wait()
	defer stop()
	return w.Run(ctx, abort)
}

// kindKeySweep destroys keysets that no account came to own: a sign-up makes
// the keyset first, and may end there.
const kindKeySweep = "account:sweep"

func (a *App) sweepKeys(ctx context.Context, _ *jobs.Run) error {
	if !a.clock.Plausible() { // a sign-up under way may seem to be old
		return jobs.Retry("internal", errors.New("the clocks differ by too much"))
	}
	n, err := a.vault.SweepUnowned(ctx, 24*time.Hour, func(subjects []string) (map[string]bool, error) {
		owned, err := a.Accounts.Owned(ctx, subjects)
		if err != nil {
			return nil, err
		}
		kept, err := a.Privacy.Owned(ctx, subjects)
		maps.Copy(owned, kept)
		return owned, err
	})
	if n > 0 {
		a.log.Info("keysets without an account were destroyed", "keysets", n)
	}
	if err != nil {
		return jobs.Retry("internal", err)
	}
	return nil
}

// runScheduler keeps queue and schedules in order until ctx ends.
func (a *App) runScheduler(ctx context.Context) error {
	if a.awaitReplay(ctx) != nil {
		return nil
	}
	var beside sync.WaitGroup
	defer beside.Wait()
	beside.Go(func() { a.Privacy.Tend(ctx) })
	beside.Go(func() { a.Privacy.SetBackstop(ctx) })
	beside.Go(func() { a.Privacy.Watch(ctx) })
	return a.queue.NewScheduler(schedules()...).Run(ctx)
}

// schedules are all recurring work.
func schedules() []jobs.Schedule {
	return slices.Concat(generate.Schedules(), privacy.LedgerSchedules(), privacy.Schedules(), webhook.Schedules(), []jobs.Schedule{
		{Name: "account-sweep", Every: 24 * time.Hour, Kind: kindKeySweep},
	})
}
