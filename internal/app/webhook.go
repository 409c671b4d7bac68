package app

import (
	"context"
	"net/netip"
	"strconv"
	"time"

	"zimage/internal/config"
	"zimage/internal/db"
	"zimage/internal/generate"
	"zimage/internal/outbound"
	"zimage/internal/privacy"
	"zimage/internal/webhook"
)

// outboundOptions are where users' addresses may lead. The settings have been
// checked.
func outboundOptions(c config.Config) outbound.Options {
	o := outbound.Options{Loopback: c.OutboundLoopback}
	for _, port := range c.OutboundPorts {
		n, _ := strconv.ParseUint(port, 10, 16)
		o.Ports = append(o.Ports, uint16(n))
	}
	for _, prefix := range c.NAT64Prefix {
		if p, err := netip.ParsePrefix(prefix); err == nil {
			o.NAT64 = append(o.NAT64, p)
		}
	}
	return o
}

// openWebhooks makes the room that tells people's programs. It is told of events as
// the others are.
func (a *App) openWebhooks() {
	o := outboundOptions(a.config)
	o.Registry = a.registry
	client := outbound.New(o)
	a.closing(func() error { client.Close(); return nil })
	kept, _ := a.policy.Window("webhooks")
	a.Webhooks = webhook.New(webhook.Options{
		DB: a.db, Vault: a.vault, Queue: a.queue, Clock: a.clock, Log: a.log, Client: client, PublicURL: a.config.PublicURL,
		Generation: toldGeneration(a.Generate), Expiring: toldExpiring(a.Generate), Tell: a.Accounts.Tell, Ended: a.Privacy.Ended, Kept: kept.Before,
	})
}

// drops delete rows with those that belong to them. The room of webhooks is opened later.
func (a *App) drops() map[string]privacy.Drop {
	return map[string]privacy.Drop{"webhook_deliveries": func(ctx context.Context, tx *db.Tx, ids []string) (int, error) {
		return a.Webhooks.DropDeliveries(ctx, tx, ids)
	}}
}

// ends are what people end beside their content.
func (a *App) ends() map[string]privacy.End {
	return map[string]privacy.End{
		generate.EndedShare: {Back: a.Generate.SharesBack, Again: a.Generate.EndSharesAgain},
		generate.EndedLinks: {Back: a.Generate.LinksBack, Again: a.Generate.RevokeLinksAgain},
		webhook.EndedWebhook: {
			Back: func(ctx context.Context, q db.Querier, ids []string) ([]string, error) {
				return a.Webhooks.EndpointsBack(ctx, q, ids)
			},
			Again: func(ctx context.Context, tx *db.Tx, ids []string) error {
				return a.Webhooks.EndEndpointsAgain(ctx, tx, ids)
			},
		},
	}
}

// toldGeneration is what a webhook may tell of a generation.
func toldGeneration(rooms *generate.Service) func(ctx context.Context, owner, id string) (webhook.Generation, error) {
	return func(ctx context.Context, owner, id string) (webhook.Generation, error) {
		g, err := rooms.Get(ctx, owner, id)
		if err != nil {
			return webhook.Generation{}, err
		}
		told := webhook.Generation{ID: g.ID, Status: string(g.Status), CreatedAt: g.CreatedAt, StartedAt: g.StartedAt, FinishedAt: g.FinishedAt,
			ExpiresAt: g.ExpiresAt, Prompt: g.Request.Prompt, NegativePrompt: g.Request.NegativePrompt, Metadata: g.Request.Metadata}
		if g.Failure != nil {
			told.Code = g.Failure.Code
		}
		for _, i := range g.Images {
			told.Images = append(told.Images, i.ID)
		}
		return told, nil
	}
}

// toldExpiring is what a webhook may tell of images that end.
func toldExpiring(rooms *generate.Service) func(ctx context.Context, owner string, until time.Time, life time.Duration, after string, limit int) ([]webhook.Image, error) {
	return func(ctx context.Context, owner string, until time.Time, life time.Duration, after string, limit int) ([]webhook.Image, error) {
		list, err := rooms.Expiring(ctx, owner, until, life, after, limit)
		told := make([]webhook.Image, len(list))
		for i, ending := range list {
			told[i] = webhook.Image(ending)
		}
		return told, err
	}
}
