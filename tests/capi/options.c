/* Options as text: what a user types is taken whole or not at all, and what cannot be meant is named. */
#include "check.h"

static void bad_text_changes_nothing_and_is_named(void)
{
    static const struct { const char *text, *named; } bad[] = {
        {"treshold=1", "treshold"},
        {"fbcache,threshold=0.3,bogus=1", "bogus"},
        {"threshold=0.3,bogus", "bogus"},
        {"threshold", "threshold"},
        {"threshold=", "threshold"},
        {"threshold=abc", "threshold"},
        {"threshold=0.1x", "threshold"},
        {"threshold=-1", "threshold"},
        {"threshold=0", "threshold"},
        {"threshold=nan", "threshold"},
        {"warmup_steps=-1", "warmup_steps"},
        {"warmup_steps=1.5", "warmup_steps"},
        {"warmup_steps=99999999999", "warmup_steps"},
        {"max_error=nan", "max_error"},
        {"order=5", "order"},
        {"estimator=foo", "estimator"},
        {"rule=foo", "rule"},
        {"scope=foo", "scope"},
        {"compat=foo", "compat"},
        {"history_dtype=f64", "history_dtype"},
        {"on_residual=2", "on_residual"},
        {"lagged=yes please", "lagged"},
        {"fill=0:9", "fill"},
        {"fill=", "fill"},
        {"mask=102", "mask"},
        {"every=0", "every is '0'"},
        {"every=-1", "every is '-1'"},
        {"every=1.5", "every is '1.5'"},
        {"every=auto", "every is 'auto'"},
        {"spatial.every=0", "spatial.every is '0'"},
        {"spatial.every=none", "spatial.every is 'none'"},
        {"temporal.every=x", "temporal.every is 'x'"},
        {"cross.layers=0", "cross.layers is '0'"},
        {"mlp.layers=none", "mlp.layers is 'none'"},
        {"self.every=2", "self.every"},
        {"window=0.8:0.1", "window is '0.8:0.1'"},
        {"window=0.5:0.5", "window is '0.5:0.5'"},
        {"window=0.5", "window is '0.5'"},
        {"window=0.1:0.5:0.9", "window is '0.1:0.5:0.9'"},
        {"window=nan:1", "window is 'nan:1'"},
        {"window=0:inf", "window is '0:inf'"},
        {"window=:", "window is ':'"},
        {"window=auto", "window is 'auto'"},
        {"mlp.window=none", "mlp.window is 'none'"},
        {"mlp.window=1:0", "mlp.window is '1:0'"},
        {"mlp.at=0", "mlp.at is '0'"},
        {"mlp.at=-0.5", "mlp.at is '-0.5'"},
        {"mlp.at=0.9:0:0.5", "mlp.at is '0.9:0:0.5'"},
        {"mlp.at=", "mlp.at is ''"},
        {"mlp.at=nan", "mlp.at is 'nan'"},
        {"mlp.at=.9:.9:.9:.9:.9:.9:.9:.9:.9:.9:.9:.9:.9:.9:.9:.9:.9", "up to 16"},
        {"mlp.skips=0", "mlp.skips is '0'"},
        {"cond_only=yes", "cond_only is 'yes'"},
        {"weight=", "weight is ''"},
        {"weight=0.2:", "weight is '0.2:'"},
        {"weight=0.2:0.5:0.8", "weight is '0.2:0.5:0.8'"},
        {"weight=inf", "weight is 'inf'"},
        {"scale=0", "scale is '0'"},
        {"guidance.every=0", "guidance.every is '0'"},
        {"guidance.every=auto", "guidance.every is 'auto'"},
        {"guidance.window=1:0", "guidance.window is '1:0'"},
        {"guidance.low=nan", "guidance.low is 'nan'"},
        {"guidance.high=inf", "guidance.high is 'inf'"},
        {"guidance.low_window=1:0", "guidance.low_window is '1:0'"},
        {"guidance.high_window=2", "guidance.high_window is '2'"},
        {"guidance.max_growth=-1", "guidance.max_growth is '-1'"},
        {"guidance=2", "'guidance'"},
        {"kind_every=2", "'kind_every'"}, /* a field whose name in texts is another */
        {"fbcache,dbcache", "dbcache"},
        {"struct_size=3", "struct_size"},
        {"magic=3", "magic"},
        {"=1", "''"},
    };
    dc_options_t options = options_of("dbcache,threshold=0.12,back_blocks=2"), before = options;
    for (size_t k = 0; k < sizeof bad / sizeof *bad; k++) {
        dc_status_t status = dc_options_parse(&options, bad[k].text);
        if (status != DC_ERR_ARG) fprintf(stderr, "text: %s\n", bad[k].text);
        CHECK_STATUS(status, DC_ERR_ARG);
        CHECK(memcmp(&options, &before, sizeof options) == 0);
        if (strstr(dc_last_error(), bad[k].named) == NULL) fprintf(stderr, "text: %s\n", bad[k].text);
        CHECK(strstr(dc_last_error(), bad[k].named) != NULL);
    }
    /* a mask longer than there is room for */
    char mask[DC_MAX_STEPS + 16] = "mask=";
    memset(mask + 5, '1', DC_MAX_STEPS + 1);
    CHECK_STATUS(dc_options_parse(&options, mask), DC_ERR_ARG);
    CHECK_SAYS("256");
    CHECK(memcmp(&options, &before, sizeof options) == 0);
    /* a key of ten thousand letters fits into no message */
    char *monster = malloc(10001);
    CHECK(monster != NULL);
    memset(monster, 'k', 10000);
    monster[10000] = '\0';
    CHECK_STATUS(dc_options_parse(&options, monster), DC_ERR_ARG);
    CHECK(strlen(dc_last_error()) > 0 && strlen(dc_last_error()) < 10000);
    free(monster);
}

static void an_unknown_key_lists_the_known_and_guesses(void)
{
    static const char *const keys[] = {
        "threshold", "front_blocks", "back_blocks", "order", "estimator", "rule", "scope", "on_residual", "compat",
        "lagged", "share", "fill", "history_dtype", "max_age", "warmup_steps", "warmup_interval", "last_steps",
        "max_consecutive", "max_total", "max_error", "max_run_error", "max_gain", "mask", "every", "window",
        "spatial.every", "temporal.window", "cross.layers", "mlp.every", "mlp.at", "mlp.skips", "cond_only", "weight",
        "scale", "guidance.every", "guidance.max_growth", "guidance.window", "guidance.low", "guidance.high",
        "guidance.low_window", "guidance.high_window",
    };
    dc_options_t options = options_of("fbcache");
    CHECK_STATUS(dc_options_parse(&options, "treshold=1"), DC_ERR_ARG);
    CHECK_SAYS("did you mean");
    for (size_t k = 0; k < sizeof keys / sizeof *keys; k++) CHECK(strstr(dc_last_error(), keys[k]) != NULL);
    CHECK_STATUS(dc_options_parse(&options, "estimator=tailor"), DC_ERR_ARG);
    CHECK_SAYS("hold");
    CHECK_SAYS("taylor");
    CHECK_SAYS("newton");
    CHECK_STATUS(dc_options_parse(&options, "fbcach"), DC_ERR_ARG);
    CHECK_SAYS("fbcache");
    CHECK_SAYS("dbcache");
    CHECK_STATUS(dc_options_init(&options, sizeof options, "no such method"), DC_ERR_ARG);
    CHECK_SAYS("no such method");
    CHECK_SAYS("none");
    CHECK_SAYS("fbcache");
    CHECK_SAYS("dbcache");
    CHECK_SAYS("mask");
    static const char *const presets[] = {
        "taylorseer", "hicache", "pab", "pab-cogvideox", "pab-latte", "pab-opensora", "pab-opensoraplan", "pab-vchitect",
        "fastercache",
    };
    for (size_t k = 0; k < sizeof presets / sizeof *presets; k++) CHECK(strstr(dc_last_error(), presets[k]) != NULL);
    CHECK_STATUS(dc_options_parse(&options, "spatial.evry=2"), DC_ERR_ARG);
    CHECK_SAYS("did you mean 'spatial.every'");
    CHECK_STATUS(dc_options_parse(&options, "fastercach"), DC_ERR_ARG);
    CHECK_SAYS("did you mean 'fastercache'");
}

static void same_options(const dc_options_t *a, const dc_options_t *b)
{
    CHECK(strcmp(a->preset, b->preset) == 0);
    CHECK(a->rule == b->rule && a->scope == b->scope && a->estimator == b->estimator);
    CHECK(a->on_residual == b->on_residual && a->compat == b->compat && a->lagged == b->lagged);
    CHECK(a->share == b->share && a->fill == b->fill && a->history_dtype == b->history_dtype);
    CHECK(a->max_age == b->max_age && a->front_blocks == b->front_blocks && a->back_blocks == b->back_blocks);
    CHECK(a->order == b->order && a->warmup_steps == b->warmup_steps && a->last_steps == b->last_steps);
    CHECK(a->warmup_interval == b->warmup_interval);
    CHECK(a->max_consecutive == b->max_consecutive && a->max_total == b->max_total);
    CHECK(a->threshold == b->threshold && a->max_error == b->max_error);
    CHECK(a->max_run_error == b->max_run_error && a->max_gain == b->max_gain);
    CHECK(a->mask_len == b->mask_len && memcmp(a->mask, b->mask, sizeof a->mask) == 0);
    CHECK(a->every == b->every && a->cond_only == b->cond_only && a->scale == b->scale);
    CHECK(memcmp(a->window, b->window, sizeof a->window) == 0);
    CHECK(memcmp(a->kind_every, b->kind_every, sizeof a->kind_every) == 0);
    CHECK(memcmp(a->kind_layers, b->kind_layers, sizeof a->kind_layers) == 0);
    CHECK(memcmp(a->kind_window, b->kind_window, sizeof a->kind_window) == 0);
    CHECK(a->n_mlp_at == b->n_mlp_at && memcmp(a->mlp_at, b->mlp_at, sizeof a->mlp_at) == 0);
    CHECK(a->mlp_skips == b->mlp_skips && memcmp(a->weight, b->weight, sizeof a->weight) == 0);
    CHECK(a->guide_every == b->guide_every && a->guide_max_growth == b->guide_max_growth);
    CHECK(a->guide_low == b->guide_low && a->guide_high == b->guide_high);
    CHECK(memcmp(a->guide_window, b->guide_window, sizeof a->guide_window) == 0);
    CHECK(memcmp(a->guide_low_window, b->guide_low_window, sizeof a->guide_low_window) == 0);
    CHECK(memcmp(a->guide_high_window, b->guide_high_window, sizeof a->guide_high_window) == 0);
}

static void format_then_parse_is_the_identity(void)
{
    static const char *const texts[] = {
        "none", "fbcache", "dbcache", "mask,mask=110010", "fbcache,threshold=0.1",
        "fbcache,threshold=0.30000000000000004", "fbcache,threshold=1e-300", "fbcache,threshold=1234567.125",
        "dbcache,front_blocks=2,back_blocks=3", "fbcache,estimator=taylor,order=1", "fbcache,estimator=newton,order=4",
        "fbcache,estimator=hold", "fbcache,lagged=1", "fbcache,share=1", "fbcache,fill=0", "fbcache,fill=0:2",
        "fbcache,fill=all", "fbcache,history_dtype=f16", "fbcache,history_dtype=bf16", "fbcache,history_dtype=f32",
        "fbcache,history_dtype=tensor", "fbcache,compat=diffusers", "fbcache,max_age=3", "fbcache,max_age=none",
        "fbcache,warmup_steps=0,last_steps=0", "fbcache,warmup_interval=2", "fbcache,max_consecutive=0",
        "fbcache,max_consecutive=none,max_total=none", "fbcache,max_total=0", "fbcache,max_error=none,max_gain=none",
        "fbcache,max_error=auto,max_consecutive=auto", "fbcache,max_error=0.25,max_run_error=1.5,max_gain=2",
        "mask,mask=1,scope=model", "mask,mask=10,scope=model,on_residual=0", "fbcache," NO_RAILS,
        "none,rule=change,front_blocks=1,threshold=0.5",
        "taylorseer", "hicache", "pab", "pab-cogvideox", "pab-latte", "pab-opensora", "pab-opensoraplan", "pab-vchitect",
        "fastercache", "fastercache,compat=diffusers", "taylorseer,compat=paper,order=4", "hicache,scale=0.7",
        "pab,spatial.every=auto,every=4", "pab,temporal.every=3,cross.layers=7,mlp.window=-1:2,window=none",
        "pab-latte,mlp.at=none", "pab-latte,mlp.at=0.9:0.1:0.30000000000000004,mlp.skips=7,mlp.layers=all",
        "fastercache,weight=0.2:0.8,cond_only=0", "fastercache,weight=-1,estimator=foca",
        "fastercache,guidance.every=none,guidance.window=none", "fastercache,guidance.low=1e-9,guidance.high=-3",
        "fastercache,guidance.low_window=none,guidance.high_window=0.5:1.5,guidance.max_growth=none",
        "fastercache,guidance.max_growth=0", "none,rule=schedule,scope=block,every=3,on_residual=0",
    };
    for (size_t k = 0; k < sizeof texts / sizeof *texts; k++) {
        dc_options_t first = options_of(texts[k]), second = options_of("mask,mask=01"), third;
        char text[1024], again[1024];
        size_t n = 0, m = 0;
        CHECK_OK(dc_options_format(&first, text, sizeof text, &n));
        CHECK(n == strlen(text));
        CHECK_OK(dc_options_parse(&second, text)); /* whatever was there before */
        same_options(&first, &second);
        third = options_of(text);
        same_options(&first, &third);
        CHECK_OK(dc_options_format(&second, again, sizeof again, &m));
        CHECK(strcmp(text, again) == 0);
    }
}

static void format_prints_the_preset_and_what_differs_from_it(void)
{
    static const struct { const char *text, *canonical; } pairs[] = {
        {"none", "none"},
        {"fbcache", "fbcache"},
        {"fbcache,threshold=0.1", "fbcache,threshold=0.1"},
        {"fbcache,threshold=0.1000", "fbcache,threshold=0.1"},
        {"dbcache,threshold=0.12,fbcache", ""}, /* a preset is only a first word */
        {"dbcache,back_blocks=4", "dbcache,back_blocks=4"},
        {"mask,mask=1101", "mask,mask=1101"},
        {"pab,spatial.every=2", "pab"},
        {"pab, temporal.every = 3", "pab,temporal.every=3"},
        {"pab,window=.1:.9", "pab,window=0.1:0.9"},
        {"fastercache,weight=0.5:0.5", "fastercache"},
        {"fastercache,weight=0.25:0.75,guidance.every=2", "fastercache,guidance.every=2,weight=0.25:0.75"},
    };
    for (size_t k = 0; k < sizeof pairs / sizeof *pairs; k++) {
        dc_options_t options = options_of("none");
        char text[256];
        size_t n = 0;
        if (pairs[k].canonical[0] == '\0') {
            CHECK_STATUS(dc_options_parse(&options, pairs[k].text), DC_ERR_ARG);
            continue;
        }
        CHECK_OK(dc_options_parse(&options, pairs[k].text));
        CHECK_OK(dc_options_format(&options, text, sizeof text, &n));
        CHECK(strcmp(text, pairs[k].canonical) == 0);
    }
    /* a bare first word re-applies the preset: nothing of the old one stays */
    dc_options_t options = options_of("dbcache,threshold=0.9"), fresh = options_of("fbcache");
    CHECK_OK(dc_options_parse(&options, "fbcache"));
    same_options(&options, &fresh);
    /* without one, the rest is left alone */
    CHECK_OK(dc_options_parse(&options, "threshold=0.5"));
    CHECK(options.threshold == 0.5 && options.front_blocks == 1);
    CHECK_OK(dc_options_init(&options, sizeof options, NULL));
    CHECK(strcmp(options.preset, "none") == 0);
}

/* Each name of a text is the field that the manual says. */
static void texts_fill_the_fields_of_the_manual(void)
{
    dc_options_t o = options_of("none,every=7,window=-0.1:0.9,cond_only=1,scale=0.25,weight=0.2:0.8,mlp.at=0.7:0.6,"
                                "mlp.skips=5,scope=layers,rule=schedule,estimator=foca");
    CHECK(o.every == 7 && o.window[0] == -0.1 && o.window[1] == 0.9 && o.cond_only == 1 && o.scale == 0.25);
    CHECK(o.weight[0] == 0.2 && o.weight[1] == 0.8 && o.n_mlp_at == 2 && o.mlp_skips == 5);
    CHECK(o.mlp_at[0] == 0.7 && o.mlp_at[1] == 0.6 && o.mlp_at[2] == 0.0);
    CHECK(o.scope == DC_SCOPE_LAYERS && o.rule == DC_RULE_SCHEDULE && o.estimator == DC_ESTIMATOR_FOCA);
    static const char *const kinds[] = {"spatial", "temporal", "cross", "mlp"};
    for (uint32_t kind = DC_KIND_SPATIAL; kind <= DC_KIND_MLP; kind++) {
        char text[96];
        const char *name = kinds[kind];
        snprintf(text, sizeof text, "none,%s.every=3,%s.layers=4,%s.window=0.25:0.75", name, name, name);
        o = options_of(text);
        for (uint32_t k = 0; k < DC_MAX_KINDS; k++) {
            int own = k == kind;
            CHECK(o.kind_every[k] == (own ? 3u : 0u) && o.kind_layers[k] == (own ? 4u : 0u));
            CHECK(o.kind_window[k][0] == (own ? 0.25 : 0.0) && o.kind_window[k][1] == (own ? 0.75 : 0.0));
        }
        snprintf(text, sizeof text, "%s.every=auto,%s.layers=all,%s.window=auto", name, name, name);
        CHECK_OK(dc_options_parse(&o, text));
        CHECK(o.kind_every[kind] == 0 && o.kind_layers[kind] == 0 && o.kind_window[kind][1] == 0.0);
    }
    o = options_of("none,guidance.every=5,guidance.max_growth=3,guidance.window=0.1:0.2,guidance.low=1.5,guidance.high=2.5,"
                   "guidance.low_window=0.3:0.4,guidance.high_window=0.5:0.6");
    CHECK(o.guide_every == 5 && o.guide_max_growth == 3 && o.guide_low == 1.5 && o.guide_high == 2.5);
    CHECK(o.guide_window[0] == 0.1 && o.guide_window[1] == 0.2 && o.guide_low_window[0] == 0.3);
    CHECK(o.guide_low_window[1] == 0.4 && o.guide_high_window[0] == 0.5 && o.guide_high_window[1] == 0.6);
    CHECK_OK(dc_options_parse(&o, "guidance.every=none,guidance.max_growth=auto,guidance.window=none"));
    CHECK(o.guide_every == 0 && o.guide_max_growth == DC_AUTO && o.guide_window[0] == 0.0 && o.guide_window[1] == 0.0);
    CHECK_OK(dc_options_parse(&o, "guidance.max_growth=none"));
    CHECK(o.guide_max_growth == DC_NONE);

    /* what the manual says of defaults */
    o = options_of("none");
    CHECK(o.order == 1 && o.mlp_skips == 2 && o.scale == 0.5 && o.every == 0 && o.guide_every == 0);
    CHECK(o.guide_low == 1.0 && o.guide_high == 1.0 && o.guide_max_growth == DC_AUTO && o.warmup_interval == 1);
}

static void format_tells_its_length_and_stays_in_its_buffer(void)
{
    dc_options_t options = options_of("fbcache,threshold=0.1");
    size_t wanted = strlen("fbcache,threshold=0.1"), n = 0;
    CHECK_OK(dc_options_format(&options, NULL, 0, &n));
    CHECK(n == wanted);
    for (size_t cap = 0; cap <= wanted + 1; cap++) {
        char text[64];
        memset(text, 0x7e, sizeof text);
        n = 0;
        dc_status_t status = dc_options_format(&options, text, cap, &n);
        CHECK(n == wanted);
        CHECK(status == (cap == 0 || cap > wanted ? DC_OK : DC_ERR_ARG)); /* too small a buffer is no success */
        for (size_t j = cap; j < sizeof text; j++) CHECK(text[j] == 0x7e);
        if (cap > 0) CHECK(memchr(text, '\0', cap) != NULL || status != DC_OK);
    }
}

int main(void)
{
    bad_text_changes_nothing_and_is_named();
    an_unknown_key_lists_the_known_and_guesses();
    texts_fill_the_fields_of_the_manual();
    format_then_parse_is_the_identity();
    format_prints_the_preset_and_what_differs_from_it();
    format_tells_its_length_and_stays_in_its_buffer();
    return 0;
}
