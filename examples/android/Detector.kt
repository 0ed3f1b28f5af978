// Find objects on Android with an exported file on LiteRT. Copy it into an app; docs/devices/android.md says how.
//
//     val detector = Detector(File(context.filesDir, "best.tflite"))    // python export.py --format litert --uint8-input
//     for (found in detector.detect(bitmap)) Log.i("detector", "$found")
//
// build.gradle.kts:  implementation("com.google.ai.edge.litert:litert:1.4.0")

package org.example.detector

import android.graphics.Bitmap
import android.graphics.Canvas
import android.graphics.Color
import android.graphics.Paint
import android.graphics.RectF
import java.io.File
import java.io.RandomAccessFile
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.channels.FileChannel
import java.util.zip.ZipFile
import kotlin.math.max
import kotlin.math.min
import kotlin.math.roundToInt
import org.json.JSONObject
import org.tensorflow.lite.Interpreter

/** One object: its box in pixels of the picture. */
data class Found(val name: String, val score: Float, val box: RectF)

/** An exported file; not for several threads at once. */
class Detector(file: File, threads: Int = 4) : AutoCloseable {
    private val interpreter: Interpreter
    private val names: List<String>
    private val height: Int
    private val width: Int
    private val letterbox: Boolean
    private val padValue: Int
    private val scoreThreshold: Float
    private val iouThreshold: Float

    init {
        // the file says by itself what it is, in a zip archive at its end
        val text = ZipFile(file).use { zip -> zip.getInputStream(zip.getEntry("metadata.json")).reader().readText() }
        val metadata = JSONObject(text)
        val form = JSONObject(metadata.getString("form"))
        require(form.getBoolean("uint8_input") && form.getBoolean("decodes")) {
            "$file: export it with --uint8-input and without --raw"
        }
        val model = JSONObject(metadata.getString("model"))
        names = model.getJSONArray("class_names").let { list -> List(list.length()) { list.getString(it) } }
        height = model.getJSONArray("input_size").getInt(0)
        width = model.getJSONArray("input_size").getInt(1)
        letterbox = model.getString("resize_mode") == "letterbox"
        padValue = model.getInt("pad_value")
        scoreThreshold = model.getDouble("score_threshold").toFloat()
        iouThreshold = model.getDouble("iou_threshold").toFloat()
        val content = RandomAccessFile(file, "r").use { it.channel.map(FileChannel.MapMode.READ_ONLY, 0, it.length()) }
        interpreter = Interpreter(content, Interpreter.Options().setNumThreads(threads))
    }

    private val pixels = IntArray(height * width)
    private val input = ByteBuffer.allocateDirect(height * width * 3).order(ByteOrder.nativeOrder())
    private val count = interpreter.getOutputTensor(0).shape()[1]
    private val boxes = Array(1) { Array(count) { FloatArray(4) } }
    private val scores = Array(1) { Array(count) { FloatArray(names.size) } }

    /** The objects of a picture, best first. */
    fun detect(picture: Bitmap): List<Found> {
        val scale = min(height.toFloat() / picture.height, width.toFloat() / picture.width)
        val newHeight = if (letterbox) (picture.height * scale).roundToInt().coerceIn(1, height) else height
        val newWidth = if (letterbox) (picture.width * scale).roundToInt().coerceIn(1, width) else width
        val left = (width - newWidth) / 2
        val top = (height - newHeight) / 2
        val fitted = Bitmap.createBitmap(width, height, Bitmap.Config.ARGB_8888)
        val canvas = Canvas(fitted)
        canvas.drawColor(Color.rgb(padValue, padValue, padValue))
        val target = RectF(left.toFloat(), top.toFloat(), (left + newWidth).toFloat(), (top + newHeight).toFloat())
        canvas.drawBitmap(picture, null, target, Paint(Paint.FILTER_BITMAP_FLAG))
        fitted.getPixels(pixels, 0, width, 0, 0, width, height)
        input.rewind()
        for (pixel in pixels) {
            input.put(Color.red(pixel).toByte()).put(Color.green(pixel).toByte()).put(Color.blue(pixel).toByte())
        }
        input.rewind()
        interpreter.runForMultipleInputsOutputs(arrayOf(input), mapOf(0 to boxes, 1 to scores))
        val across = picture.width.toFloat() / newWidth
        val down = picture.height.toFloat() / newHeight
        return suppress(candidates()).map { (place, label, score) ->
            val (x1, y1, x2, y2) = boxes[0][place]
            val box = RectF((x1 - left) * across, (y1 - top) * down, (x2 - left) * across, (y2 - top) * down)
            box.intersect(0f, 0f, picture.width.toFloat(), picture.height.toFloat())
            Found(names[label], score, box)
        }
    }

    private fun candidates(): List<Triple<Int, Int, Float>> =
        scores[0].indices.mapNotNull { place ->
            val row = scores[0][place]
            val label = row.indices.maxByOrNull { row[it] }!!
            if (row[label] >= scoreThreshold) Triple(place, label, row[label]) else null
        }.sortedByDescending { it.third }

    /** Greedy suppression within each class. */
    private fun suppress(found: List<Triple<Int, Int, Float>>): List<Triple<Int, Int, Float>> {
        val kept = mutableListOf<Triple<Int, Int, Float>>()
        for (each in found) {
            val twice = kept.any { it.second == each.second && overlap(boxes[0][it.first], boxes[0][each.first]) > iouThreshold }
            if (!twice) kept += each
        }
        return kept
    }

    private fun overlap(a: FloatArray, b: FloatArray): Float {
        val across = min(a[2], b[2]) - max(a[0], b[0])
        val down = min(a[3], b[3]) - max(a[1], b[1])
        if (across <= 0 || down <= 0) return 0f
        val both = across * down
        return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)
    }

    override fun close() = interpreter.close()
}
