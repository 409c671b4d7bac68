package httpapi

import (
	"context"
	"maps"
	"net/http"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/gin-gonic/gin"

	"zimage/internal/account"
)

// routes is the whole API in one list. What each route is told to the reader as
// stands beside it in docs.go.
func (a *API) routes() {
	add(a, http.MethodPost, "/v1/generations", with(account.ScopeGenerate), createDoc, a.createGeneration)
	add(a, http.MethodGet, "/v1/generations", with(account.ScopeRead), listDoc, a.listGenerations)
	add(a, http.MethodDelete, "/v1/generations", with(account.ScopeGenerate), deleteGenerationsDoc, a.deleteGenerations)
	add(a, http.MethodGet, "/v1/generations/{id}", with(account.ScopeRead), getDoc, a.getGeneration)
	add(a, http.MethodDelete, "/v1/generations/{id}", with(account.ScopeGenerate), deleteGenerationDoc, a.deleteGeneration)
	add(a, http.MethodPost, "/v1/generations/{id}/cancel", with(account.ScopeGenerate), cancelDoc, a.cancelGeneration)
	add(a, http.MethodGet, "/v1/generations/{id}/events", with(account.ScopeRead), eventsDoc, a.generationEvents)

	add(a, http.MethodDelete, "/v1/images", with(account.ScopeGenerate), deleteImagesDoc, a.deleteImages)
	add(a, http.MethodGet, "/v1/images/{id}", with(account.ScopeRead), imageDoc, a.getImage)
	add(a, http.MethodDelete, "/v1/images/{id}", with(account.ScopeGenerate), deleteImageDoc, a.deleteImage)
	add(a, http.MethodGet, "/v1/images/{id}/content", with(account.ScopeRead), contentDoc, a.imageContent)

	add(a, http.MethodPost, "/v1/images/{id}/links", with(account.ScopeRead), signLinkDoc, a.signLink)
	add(a, http.MethodDelete, "/v1/links", with(account.ScopeGenerate), revokeLinksDoc, a.revokeLinks)
	add(a, http.MethodGet, "/v1/links/{token}", public, linkedDoc, a.linked)
	add(a, http.MethodPost, "/v1/images/{id}/shares", inSession, shareDoc, a.share)
	add(a, http.MethodGet, "/v1/shares", with(account.ScopeRead), sharesDoc, a.listShares)
	add(a, http.MethodDelete, "/v1/shares", with(account.ScopeGenerate), endSharesDoc, a.endShares)
	add(a, http.MethodDelete, "/v1/shares/{id}", with(account.ScopeGenerate), endShareDoc, a.endShare)
	add(a, http.MethodGet, "/v1/shared/{token}", public, sharedDoc, a.shared)

	add(a, http.MethodPost, "/v1/images/generations", with(account.ScopeGenerate), imagesDoc, a.createImages)
	add(a, http.MethodGet, "/v1/models", with(account.ScopeRead), modelsDoc, a.listModels)
	add(a, http.MethodGet, "/v1/models/{model}", with(account.ScopeRead), modelDoc, a.getModel)

	add(a, http.MethodPost, "/v1/account", public, signUpDoc, a.signUp)
	add(a, http.MethodPost, "/v1/account/confirm", public, confirmSignUpDoc, a.confirmSignUp)
	add(a, http.MethodGet, "/v1/account", with(account.ScopeAccount), accountDoc, a.getAccount)
	add(a, http.MethodPatch, "/v1/account", with(account.ScopeAccount), updateAccountDoc, a.updateAccount)
	add(a, http.MethodDelete, "/v1/account", inSession, closeAccountDoc, a.closeAccount)
	add(a, http.MethodPost, "/v1/account/email", inSession, changeEmailDoc, a.changeEmail)
	add(a, http.MethodPost, "/v1/account/email/confirm", inSession, confirmEmailDoc, a.confirmEmail)
	add(a, http.MethodPut, "/v1/account/password", inSession, changePasswordDoc, a.changePassword)
	add(a, http.MethodPost, "/v1/account/password/reset", public, requestResetDoc, a.requestReset)
	add(a, http.MethodPost, "/v1/account/password/reset/confirm", public, resetDoc, a.reset)
	add(a, http.MethodGet, "/v1/account/consents", with(account.ScopeAccount), consentsDoc, a.listConsents)
	add(a, http.MethodPut, "/v1/account/consents/{purpose}", inSession, setConsentDoc, a.setConsent)
	add(a, http.MethodGet, "/v1/account/objections", with(account.ScopeAccount), objectionsDoc, a.listObjections)
	add(a, http.MethodPut, "/v1/account/objections/{purpose}", inSession, objectDoc, a.object)
	add(a, http.MethodDelete, "/v1/account/objections/{purpose}", inSession, withdrawObjectionDoc, a.withdrawObjection)
	add(a, http.MethodPost, "/v1/usage", inSession, usageDoc, a.tellUsage)
	add(a, http.MethodPut, "/v1/account/restriction", inSession, restrictDoc, a.restrict)
	add(a, http.MethodDelete, "/v1/account/restriction", inSession, unrestrictDoc, a.unrestrict)

	add(a, http.MethodPut, "/v1/account/do-not-sell", inSession, doNotSellDoc, a.doNotSell)
	add(a, http.MethodDelete, "/v1/account/do-not-sell", inSession, allowSaleDoc, a.allowSale)
	add(a, http.MethodGet, "/v1/account/requests", with(account.ScopeAccount), requestsDoc, a.listRequests)
	add(a, http.MethodPost, "/v1/account/requests", inSession, askDoc, a.ask)
	add(a, http.MethodDelete, "/v1/account/requests/{id}", inSession, withdrawRequestDoc, a.withdrawRequest)

	add(a, http.MethodGet, "/v1/account/ledger", with(account.ScopeAccount), ledgerDoc, a.listLedger)
	add(a, http.MethodPost, "/v1/account/exports", inFreshSession, askExportDoc, a.askExport)
	add(a, http.MethodGet, "/v1/account/exports", inSession, exportsDoc, a.listExports)
	add(a, http.MethodGet, "/v1/account/exports/{id}", inSession, exportDoc, a.getExport)
	add(a, http.MethodDelete, "/v1/account/exports/{id}", inSession, deleteExportDoc, a.deleteExport)
	add(a, http.MethodGet, "/v1/account/exports/{id}/content", inFreshSession, exportContentDoc, a.exportContent)
	add(a, http.MethodGet, "/v1/privacy/receipts/{id}", public, receiptDoc, a.getReceipt)
	add(a, http.MethodPost, "/v1/privacy/receipts/{id}", public, openReceiptDoc, a.openReceipt)

	add(a, http.MethodPost, "/v1/account/totp", inSession, beginTOTPDoc, a.beginTOTP)
	add(a, http.MethodPost, "/v1/account/totp/confirm", inSession, confirmTOTPDoc, a.confirmTOTP)
	add(a, http.MethodDelete, "/v1/account/totp", inSession, removeTOTPDoc, a.removeTOTP)
	add(a, http.MethodPost, "/v1/account/recovery-codes", inSession, recoveryCodesDoc, a.newRecoveryCodes)
	add(a, http.MethodPost, "/v1/account/passkeys/challenge", inSession, beginPasskeyDoc, a.beginPasskey)
	add(a, http.MethodPost, "/v1/account/passkeys", inSession, addPasskeyDoc, a.addPasskey)
	add(a, http.MethodGet, "/v1/account/passkeys", inSession, passkeysDoc, a.listPasskeys)
	add(a, http.MethodDelete, "/v1/account/passkeys/{id}", inSession, removePasskeyDoc, a.removePasskey)

	add(a, http.MethodPost, "/v1/session", public, signInDoc, a.signIn)
	add(a, http.MethodGet, "/v1/session", inSession, sessionDoc, a.getSession)
	add(a, http.MethodDelete, "/v1/session", inSession, signOutDoc, a.signOut)
	add(a, http.MethodPost, "/v1/session/fresh", inSession, freshDoc, a.reauthenticate)
	add(a, http.MethodPost, "/v1/session/passkey/challenge", public, passkeyChallengeDoc, a.passkeyChallenge)
	add(a, http.MethodPost, "/v1/session/passkey", public, passkeySignInDoc, a.signInWithPasskey)
	add(a, http.MethodGet, "/v1/sessions", inSession, sessionsDoc, a.listSessions)
	add(a, http.MethodDelete, "/v1/sessions", inSession, endSessionsDoc, a.endSessions)
	add(a, http.MethodDelete, "/v1/sessions/{id}", inSession, endSessionDoc, a.endSession)

	add(a, http.MethodGet, "/v1/keys", with(account.ScopeAccount), keysDoc, a.listKeys)
	add(a, http.MethodPost, "/v1/keys", inSession, createKeyDoc, a.createKey)
	add(a, http.MethodDelete, "/v1/keys/{id}", with(account.ScopeAccount), revokeKeyDoc, a.revokeKey)

	add(a, http.MethodGet, "/v1/webhooks", with(account.ScopeWebhooks), webhooksDoc, a.listWebhooks)
	add(a, http.MethodPost, "/v1/webhooks", with(account.ScopeWebhooks), createWebhookDoc, a.createWebhook)
	add(a, http.MethodGet, "/v1/webhooks/secret", with(account.ScopeWebhooks), onceSecretDoc, a.onceSecret)
	add(a, http.MethodPost, "/v1/webhooks/secret/rotate", with(account.ScopeWebhooks), rotateOnceDoc, a.rotateOnce)
	add(a, http.MethodGet, "/v1/webhooks/{id}", with(account.ScopeWebhooks), webhookDoc, a.getWebhook)
	add(a, http.MethodPatch, "/v1/webhooks/{id}", with(account.ScopeWebhooks), updateWebhookDoc, a.updateWebhook)
	add(a, http.MethodDelete, "/v1/webhooks/{id}", with(account.ScopeWebhooks), deleteWebhookDoc, a.deleteWebhook)
	add(a, http.MethodPost, "/v1/webhooks/{id}/rotate", with(account.ScopeWebhooks), rotateWebhookDoc, a.rotateWebhook)
	add(a, http.MethodPost, "/v1/webhooks/{id}/test", with(account.ScopeWebhooks), testWebhookDoc, a.testWebhook)
	add(a, http.MethodGet, "/v1/webhooks/{id}/deliveries", with(account.ScopeWebhooks), deliveriesDoc, a.listDeliveries)
	add(a, http.MethodPost, "/v1/webhooks/{id}/replay", with(account.ScopeWebhooks), replayFailedDoc, a.replayFailed)
	add(a, http.MethodPost, "/v1/deliveries/{id}/replay", with(account.ScopeWebhooks), replayDoc, a.replayDelivery)
	add(a, http.MethodGet, "/v1/events", with(account.ScopeWebhooks), webhookEventsDoc, a.listEvents)

	add(a, http.MethodPost, "/v1/admin/accounts/find", inSession, findAccountDoc, a.findAccount)
	add(a, http.MethodPost, "/v1/admin/accounts/{id}/suspend", inSession, suspendDoc, a.suspendAccount)
	add(a, http.MethodPost, "/v1/admin/accounts/{id}/unsuspend", inSession, unsuspendDoc, a.unsuspendAccount)
	add(a, http.MethodPost, "/v1/admin/accounts/{id}/close-child", inSession, closeChildDoc, a.closeChild)
	add(a, http.MethodPost, "/v1/admin/accounts/{id}/disclosures", inSession, discloseDoc, a.disclose)

	add(a, http.MethodPost, "/v1/admin/retention/sweeps", inSession, sweepDoc, a.sweep)
	add(a, http.MethodGet, "/v1/admin/usage", inSession, usageReportDoc, a.usageReport)
	add(a, http.MethodGet, "/v1/admin/holds", inSession, holdsDoc, a.listHolds)
	add(a, http.MethodPost, "/v1/admin/holds", inFreshSession, placeHoldDoc, a.placeHold)
	add(a, http.MethodPost, "/v1/admin/holds/{id}/renew", inFreshSession, renewHoldDoc, a.renewHold)
	add(a, http.MethodPost, "/v1/admin/holds/{id}/release", inFreshSession, releaseHoldDoc, a.releaseHold)
	add(a, http.MethodGet, "/v1/admin/requests", inSession, staffRequestsDoc, a.listStaffRequests)
	add(a, http.MethodPost, "/v1/admin/requests", inFreshSession, openRequestDoc, a.openRequest)
	add(a, http.MethodPost, "/v1/admin/requests/{id}/open", inFreshSession, showRequestDoc, a.showRequest)
	add(a, http.MethodPost, "/v1/admin/requests/{id}/close", inFreshSession, closeRequestDoc, a.closeRequest)
	add(a, http.MethodPost, "/v1/privacy/requests/confirm", public, confirmRequestDoc, a.confirmRequest)

	add(a, http.MethodGet, "/v1/privacy/ledger/checkpoint", public, checkpointDoc, a.getCheckpoint)

	add(a, http.MethodGet, "/v1/privacy/policy", public, policyDoc, a.getPolicy)
	add(a, http.MethodGet, "/v1/privacy/status", public, statusDoc, a.getStatus)

	add(a, http.MethodGet, "/healthz", probing, healthDoc, a.health)
	add(a, http.MethodGet, "/readyz", probing, readyDoc, a.ready)

	a.engine.GET("/openapi.json", a.serveOpenAPI)
	a.engine.GET("/docs", a.serveDocs)
	a.engine.GET("/docs.css", a.serveStyle)
	for path, page := range a.rooms.Pages {
		before := []gin.HandlerFunc{}
		if strings.Contains(path, ":") { // it is not answered from memory
			before = append(before, func(c *gin.Context) { a.sit(c, false) })
		}
		a.engine.GET(path, append(before, gin.WrapH(page))...)
	}
}

// add registers one route with everything that is around a handler: who may, the
// body, the time limit, the words of its errors.
func add[I, O any](a *API, method, path string, need access, d doc, handle func(context.Context, *I) (*O, error)) {
	op := d.operation(a, method, path, need)
	op.RejectUnknownQueryParameters = true
	op.MaxBodyBytes = maxBody + 1 // readStrict has already counted it
	op.BodyReadTimeout = -1       // and taken the time
	op.Middlewares = append(op.Middlewares, a.guard(need))
	if need.public && !need.probe {
		op.Middlewares = append(op.Middlewares, a.seat(d.request != nil))
	}
	if d.request != nil {
		op.Middlewares = append(op.Middlewares, a.readStrict(need, d), a.checkQuery)
	} else {
		op.Middlewares = append(op.Middlewares, a.checkQuery, a.refuseBody)
	}
	// Where a handler sets a header, huma describes it anew, without our words.
	described := op.Responses[strconv.Itoa(op.DefaultStatus)].Headers
	ours := maps.Clone(described)
	defer func() { maps.Copy(described, ours) }()
	huma.Register(a.spec, op, func(ctx context.Context, in *I) (*O, error) {
		if !d.long {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, ordinaryTime)
			defer cancel()
		}
		out, err := handle(ctx, in)
		if err != nil {
			return nil, a.refuse(ctx, err)
		}
		return out, nil
	})
}
