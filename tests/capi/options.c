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
        "max_consecutive", "max_total", "max_error", "max_run_error", "max_gain", "mask",
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
    format_then_parse_is_the_identity();
    format_prints_the_preset_and_what_differs_from_it();
    format_tells_its_length_and_stays_in_its_buffer();
    return 0;
}
